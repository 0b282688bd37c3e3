"""The plan of a search: one operation per block, and the hidden units that each MLP keeps.

Written as ``gates.json``. Needs pydantic only, so that a plan can be read, checked and edited
without torch.
"""

from __future__ import annotations

import re
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.records import (
    StrictModel,
    load_record,
    parsed_by,
    record_digest,
    write_record,
)

GATES_FILE = "gates.json"
_OPERATION = re.compile(r"[a-z][a-z0-9_]*")


class AttentionKind(str, Enum):
    """The operation of a block's attention branch, by the name that stands in ``gates.json``.

    The members are those of this package, in order of cost. Other packages add operations under
    other names: ``AttentionKind("pooling")`` is one value too, the same object at every call.
    """

    SKIP = "skip"
    CONV1X1 = "conv1x1"
    CONV3X3 = "conv3x3"
    MSA = "msa"

    @classmethod
    def _missing_(cls, value: object) -> AttentionKind | None:
        if not isinstance(value, str) or not _OPERATION.fullmatch(value):
            return None
        kind = str.__new__(cls, value)
        kind._name_, kind._value_ = value.upper(), value
        added = cls._value2member_map_.setdefault(value, kind)
        assert isinstance(added, cls)
        return added


class _Record(StrictModel):
    """A part of the file. Keys that came later are left out where they have their defaults, so that
    the digests of older plans stay valid.
    """

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        fields = type(self).model_fields
        plain = {key for key in self.later if getattr(self, key) == fields[key].default}
        return {key: value for key, value in written.items() if key not in plain}


class ModelSpec(_Record):
    """A timm model by name, and the arguments of ``timm.create_model`` that change its shape."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        args = " ".join(f"{key}={value}" for key, value in self.args.items())
        return f"{self.name} {args}".strip()


class BlockPlan(_Record):
    """One block: its operation, and the indices of the hidden units that its MLP keeps.

    Attributes:
        dilation: Of a 3×3 convolution; 2 for neighbours at a distance of two tokens.
        heads_keep: Indices of the heads that attention keeps; None for all.
    """

    later: ClassVar[tuple[str, ...]] = ("dilation", "heads_keep")

    path: str
    attention: AttentionKind
    mlp_keep: tuple[Annotated[int, Field(ge=0)], ...]
    dilation: Literal[1, 2] = 1
    heads_keep: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)

    @property
    def heads(self) -> int | None:
        """Number of heads that attention keeps; None for all."""
        return None if self.heads_keep is None else len(self.heads_keep)

    @property
    def operation(self) -> str:
        """The operation with its dilation and heads, for tables."""
        heads = f", {self.heads} head{'s' if self.heads != 1 else ''}" if self.heads else ""
        return f"{self.attention.value}{heads}{', dilated' if self.dilation > 1 else ''}"

    @field_validator("mlp_keep", "heads_keep")
    @classmethod
    def _ascending(
        cls, keep: tuple[int, ...] | None, info: ValidationInfo
    ) -> tuple[int, ...] | None:
        if any(b <= a for a, b in pairwise(keep or ())):
            raise ValueError(f"{info.field_name} must ascend without repeats")
        return keep

    @model_validator(mode="after")
    def _fields_of_operations(self) -> BlockPlan:
        if self.dilation > 1 and self.attention is not AttentionKind.CONV3X3:
            raise ValueError("only a conv3x3 has a dilation")
        if self.heads_keep is not None and self.attention is not AttentionKind.MSA:
            raise ValueError("only attention (msa) keeps heads")
        return self


class Amount(_Record):
    """A budget in another unit than MACs; ``on`` is where the ``ns`` were measured."""

    unit: Literal["params", "ns"]
    asked: int
    met: int
    dense: int
    on: str = ""


class Budget(_Record):
    """The requested budget and the cost of the plan, in MACs per image.

    Attributes:
        asked: The request as text.
        asked_macs: None where another unit was requested.
        amount: The same in the requested unit, where that is not MACs.
    """

    later = ("asked_macs", "amount")

    asked: str
    asked_macs: int | None = None
    met_macs: int
    dense_macs: int
    amount: Amount | None = None


class Semantics(_Record):
    """How head maps become kernels; the published models differ in this.

    Attributes:
        head_temperature: α of the softmax over heads.
        kernel_order: Kernel position of each column of the head map: ``row-major``;
            ``column-major``, as in the published DeiT models; or ``centre-first``, as in the
            published Swin models: the centre, then the others column by column.
    """

    head_temperature: float = Field(default=0.01, gt=0)
    kernel_order: Literal["row-major", "column-major", "centre-first"] = "row-major"


class TokenKeep(StrictModel):
    """One merge of tokens.

    Attributes:
        after: Index of the block behind which tokens are merged, from 0.
        share: Fraction of the grid tokens left there that are kept; at least half of them,
            because each merged token joins one of the other half.
    """

    after: int = Field(ge=0)
    share: float = Field(ge=0.5, le=1)

    def __str__(self) -> str:
        return f"{self.share:g}@{self.after}"


def parse_token_keep(text: str) -> tuple[TokenKeep, ...]:
    """Parse ``0.7@3`` or ``0.7@3,0.7@6``.

    Raises:
        InputError: The text is malformed, or names a block twice.
    """
    found = []
    for part in text.split(","):
        share, _, after = part.strip().partition("@")
        try:
            found.append(TokenKeep.model_validate({"after": after, "share": share}))
        except ValueError:
            raise InputError(
                f"Token keep '{text}' is not understood at '{part.strip()}'.",
                "Write FRACTION@BLOCK, such as 0.7@3 or 0.7@3,0.7@6: a fraction from 0.5 to 1, and "
                "a block counted from 0.",
            ) from None
    if len({keep.after for keep in found}) < len(found):
        raise InputError(
            f"Token keep '{text}' names a block twice.", "Give each block one fraction."
        )
    return tuple(sorted(found, key=lambda keep: keep.after))


# Merges of tokens as a setting: written as text, or null for none.
TokenMerges = Annotated[
    tuple[TokenKeep, ...],
    BeforeValidator(lambda keeps: () if keeps is None else keeps),
    parsed_by(parse_token_keep),
    PlainSerializer(lambda keeps: ",".join(map(str, keeps)) or None),
]


class PrunePlan(_Record):
    """Everything but weights that is needed to build the lean model."""

    later = ("token_keep",)

    schema_version: Literal[1] = 1
    kind: Literal["gates"] = "gates"
    model: ModelSpec
    blocks: tuple[BlockPlan, ...]
    semantics: Semantics = Semantics()
    budget: Budget | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    token_keep: tuple[TokenKeep, ...] = ()

    @model_validator(mode="after")
    def _distinct_blocks(self) -> PrunePlan:
        if len({keep.after for keep in self.token_keep}) < len(self.token_keep):
            raise ValueError("token_keep names a block twice")
        paths = [block.path for block in self.blocks]
        if not paths:
            raise ValueError("a plan needs blocks")
        if len(set(paths)) != len(paths):
            raise ValueError("two entries name the same block")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the plan as written."""
        return record_digest(self.model_dump(mode="json"))


def save_plan(plan: PrunePlan, folder: Path) -> Path:
    """Write ``gates.json`` into ``folder``."""
    path = folder / GATES_FILE
    write_record(path, plan.model_dump(mode="json"))
    return path


def load_plan(path: Path) -> PrunePlan:
    """Read and validate a plan: a ``gates.json``, or the one in a folder.

    Raises:
        InputError: There is none, or its schema version is unknown.
        CorruptFileError: It is not a plan, or was changed since it was written.
    """
    file = path / GATES_FILE if path.is_dir() else path
    return load_record(file, "gates", PrunePlan, "Search again")
