"""What a search decides: one operation a block, and the hidden units that each MLP keeps.

Written as ``gates.json``. Stands on pydantic alone, so that a plan can be read, checked and
edited where there is no torch.
"""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from spvit_deploy.core.errors import InputError, PlanError, first_line
from spvit_deploy.core.records import StrictModel, read_record, record_digest, write_record

SCHEMA_VERSION = 1
GATES_FILE = "gates.json"


class AttentionKind(str, Enum):
    """The operations that one set of attention weights holds, in order of cost."""

    SKIP = "skip"
    CONV1X1 = "conv1x1"
    CONV3X3 = "conv3x3"
    MSA = "msa"

    @property
    def gates(self) -> int:
        """How many of the three gates are open, the cheaper ones first (arXiv 2111.11802)."""
        return list(AttentionKind).index(self)

    @staticmethod
    def of_gates(count: int) -> AttentionKind:
        """The kind that ``count`` open gates stand for."""
        return list(AttentionKind)[count]


class ModelSpec(StrictModel):
    """A timm model by name, and the arguments of ``timm.create_model`` that change its shape."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        args = " ".join(f"{key}={value}" for key, value in self.args.items())
        return f"{self.name} {args}".strip()


class BlockPlan(StrictModel):
    """One block: its operation, and the indices of the hidden units that its MLP keeps.

    Attributes:
        dilation: of a 3×3 convolution: 2 for neighbours at a distance of two tokens.
        heads_keep: of attention: indices of the heads that it keeps; None for all.
    """

    path: str
    attention: AttentionKind
    mlp_keep: tuple[Annotated[int, Field(ge=0)], ...]
    dilation: Literal[1, 2] = 1
    heads_keep: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)

    @property
    def heads(self) -> int | None:
        """How many heads attention keeps; None for all."""
        return None if self.heads_keep is None else len(self.heads_keep)

    @property
    def operation(self) -> str:
        """What attention became, for people."""
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
    def _dilation_of_a_3x3(self) -> BlockPlan:
        if self.dilation > 1 and self.attention is not AttentionKind.CONV3X3:
            raise ValueError("only a conv3x3 has a dilation")
        return self

    @model_validator(mode="after")
    def _heads_of_attention(self) -> BlockPlan:
        if self.heads_keep is not None and self.attention is not AttentionKind.MSA:
            raise ValueError("only attention (msa) keeps heads")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A block without a dilation, or with all heads, is written, and hashed, as it was before
        there were any others.
        """
        written: dict[str, Any] = write(self)
        plain = {"dilation": 1, "heads_keep": None}
        return {k: v for k, v in written.items() if k not in plain or v != plain[k]}


class TokenKeep(StrictModel):
    """Tokens that are merged behind a block.

    Attributes:
        after: index of the block, from 0.
        share: of the grid's tokens that are left there, those to keep. No more than half of them
            can go: each is merged with one of the other half.
    """

    after: int = Field(ge=0)
    share: float = Field(ge=0.5, le=1)

    def __str__(self) -> str:
        return f"{self.share:g}@{self.after}"


def parse_token_keep(text: str | None) -> tuple[TokenKeep, ...]:
    """``0.7@3`` or ``0.7@3,0.7@6``; None for no merges.

    Raises:
        InputError: neither, or a block named twice.
    """
    found = []
    for part in (text or "").split(",") if text is not None else ():
        share, _, after = part.strip().partition("@")
        try:
            found.append(TokenKeep.model_validate({"after": after, "share": share}))
        except ValueError:
            raise InputError(
                f"Token keep '{text}' is not understood at '{part.strip()}'.",
                "Write SHARE@BLOCK with a share from 0.5 to 1 and blocks counted from 0: 0.7@3, or "
                "0.7@3,0.7@6.",
            ) from None
    if len({keep.after for keep in found}) < len(found):
        raise InputError(f"Token keep '{text}' names a block twice.", "Give each block one share.")
    return tuple(sorted(found, key=lambda keep: keep.after))


class Amount(StrictModel):
    """A budget in another unit than MACs.

    Attributes:
        unit: ``params``, or ``ns`` of a call.
        asked, met, dense: what was asked, what the plan costs and what the dense model does.
        on: where times were measured: runtime, precision, batch and host.
    """

    unit: Literal["params", "ns"]
    asked: int
    met: int
    dense: int
    on: str = ""


class Budget(StrictModel):
    """What was asked and what the plan costs, in MACs for one image.

    Attributes:
        asked: as it was written.
        asked_macs: None where another unit was asked for.
        met_macs, dense_macs: of the plan and of the dense model.
        amount: the same in the unit that was asked for, where it is not MACs.
    """

    asked: str
    asked_macs: int | None = None
    met_macs: int
    dense_macs: int
    amount: Amount | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A budget in MACs is written, and hashed, as it was before there were others."""
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if value is not None}


class Semantics(StrictModel):
    """How gates turn into operations; the published models differ in these.

    Attributes:
        head_temperature: α of the softmax over heads.
        kernel_order: where the columns of the head map lie on the kernel: ``row-major``;
            ``column-major``, as in the published DeiT models; or ``centre-first``, as in the
            published Swin models: the centre, then the others column by column.
    """

    head_temperature: float = Field(default=0.01, gt=0)
    kernel_order: Literal["row-major", "column-major", "centre-first"] = "row-major"


class PrunePlan(StrictModel):
    """All that is needed, beside dense or supernet weights, to build the lean model."""

    schema_version: Literal[1] = 1
    kind: Literal["gates"] = "gates"
    model: ModelSpec
    blocks: tuple[BlockPlan, ...]
    semantics: Semantics = Semantics()
    budget: Budget | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    token_keep: tuple[TokenKeep, ...] = ()

    @model_serializer(mode="wrap")
    def _without_merges(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without any is written, and hashed, as it was before there were any."""
        written: dict[str, Any] = write(self)
        return {k: v for k, v in written.items() if k != "token_keep" or self.token_keep}

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
    """Read and validate a plan.

    Args:
        path: a ``gates.json``, or a folder that holds one.

    Raises:
        PlanError: an unknown schema version, or fields that do not make a plan.
        CorruptFileError: not JSON, or changed since it was written.
    """
    file = path / GATES_FILE if path.is_dir() else path
    return parse_plan(read_record(file, kind="gates"), str(file))


def parse_plan(record: dict[str, Any], where: str) -> PrunePlan:
    """Validate a record that was read from ``where``."""
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"{where}: schema version {version!r}; this version reads {SCHEMA_VERSION}.",
            "Upgrade spvit-deploy, or search again.",
        )
    try:
        return PrunePlan.model_validate(record)
    except ValueError as error:
        raise PlanError(
            f"{where}: {first_line(error)}.", "Search again, or mend the file."
        ) from None
