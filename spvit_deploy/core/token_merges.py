"""Merges of tokens as settings and plans have them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from spvit_deploy.core.errors import InputError


class TokenKeep(BaseModel):
    """One merge of tokens.

    Attributes:
        after: Index of the block behind which tokens are merged, from 0.
        share: Fraction of the grid tokens left there that are kept; at least half of them,
            because each merged token joins one of the other half.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: int = Field(ge=0)
    share: float = Field(ge=0.5, le=1)

    def __str__(self) -> str:
        return f"{self.share:g}@{self.after}"


def parse_token_keep(text: str | None) -> tuple[TokenKeep, ...]:
    """Parse ``0.7@3`` or ``0.7@3,0.7@6``; None means no merges.

    Raises:
        InputError: The text is malformed, or names a block twice.
    """
    found = []
    for part in text.split(",") if text is not None else ():
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


def _read_token_keep(value: Any) -> Any:
    try:
        return parse_token_keep(value) if value is None or isinstance(value, str) else value
    except InputError as error:
        raise ValueError(str(error)) from None


def _write_token_keep(keeps: tuple[TokenKeep, ...]) -> str | None:
    return ",".join(map(str, keeps)) or None


# Merges of tokens as a setting: written as text, carried as typed values.
TokenMerges = Annotated[
    tuple[TokenKeep, ...], BeforeValidator(_read_token_keep), PlainSerializer(_write_token_keep)
]
