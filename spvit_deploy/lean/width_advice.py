"""Advice on MLP widths that are not aligned to the hardware.

A kernel works on 8 or 16 channels at once and pads the rest; on GPUs an unaligned width can triple
the latency of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spvit_deploy.core.plan import PrunePlan

ALIGNMENT = 8


def unaligned_widths(plan: PrunePlan, alignment: int = ALIGNMENT) -> list[tuple[str, int]]:
    """List (block, width) of the MLP widths that are not multiples of ``alignment``."""
    widths = [(block.path, len(block.mlp_keep)) for block in plan.blocks]
    return [(path, width) for path, width in widths if width % alignment]


def advice(
    plan: PrunePlan, history: Sequence[Mapping[str, Any]] = (), alignment: int = ALIGNMENT
) -> str:
    """Return advice on widths that do not have the alignment of the hardware, or an empty string.

    Where a stage of the ``history`` requested this alignment and could not reach it, there is no
    advice; an imported model has no gates to round by.
    """
    off = unaligned_widths(plan, alignment)
    requested = [stage.get("settings", stage).get("align", 1) for stage in history]
    if not off or any(step % alignment == 0 for step in requested):
        return ""
    kept = sum(len(block.mlp_keep) for block in plan.blocks)
    more = sum(-width % alignment for _, width in off)
    first = ", ".join(f"{path} {width}" for path, width in off[:3]) + (" …" if off[3:] else "")
    text = (
        f"{len(off)} of {len(plan.blocks)} MLP widths are not multiples of {alignment} ({first}); "
        f"hardware pads them, so the next multiples, {100 * more / kept:.1f}% more hidden units, "
        "take hardly more time."
    )
    if any(stage.get("stage") == "import" for stage in history):
        return text
    return f"{text} `materialize --align {alignment}` puts widths on multiples."
