"""A layer of a call, as a runtime counts it. Loads nothing: sessions import it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerTime:
    """One layer of a call.

    Attributes:
        name: as the runtime has it.
        op: its type.
        seconds: mean of a call.
    """

    name: str
    op: str
    seconds: float
