"""MLP widths beside the grain that hardware multiplies in.

A kernel works on 8 or 16 channels at once, and pads what is left over; on GPUs a width off that
grain can triple the latency of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spvit_deploy.core.plan import PrunePlan

GRAIN = 8


def off_the_grain(plan: PrunePlan, grain: int = GRAIN) -> list[tuple[str, int]]:
    """Blocks whose MLP keeps a number of hidden units that is no multiple of ``grain``."""
    widths = [(block.path, len(block.mlp_keep)) for block in plan.blocks]
    return [(path, width) for path, width in widths if width % grain]


def advice(plan: PrunePlan, history: Sequence[Mapping[str, Any]] = (), grain: int = GRAIN) -> str:
    """What to say of such widths, or nothing.

    Args:
        plan: the widths.
        history: stages behind the model. Where one was asked for this grain and could not reach
            it, there is nothing to advise; a model that came in ready-made has no gates at hand
            to round.
        grain: of the hardware.
    """
    off = off_the_grain(plan, grain)
    if not off or any(_asked(stage) % grain == 0 for stage in history):
        return ""
    kept = sum(len(block.mlp_keep) for block in plan.blocks)
    more = sum(-width % grain for _, width in off)
    first = ", ".join(f"{path} {width}" for path, width in off[:3]) + (" …" if off[3:] else "")
    text = (
        f"{len(off)} of {len(plan.blocks)} MLP widths are no multiples of {grain} ({first}); "
        f"hardware pads them, so the next multiples, {100 * more / kept:.1f}% more hidden units, "
        "take hardly more time."
    )
    if any(stage.get("stage") == "import" for stage in history):
        return text
    return f"{text} `materialize --align {grain}` puts widths on multiples."


def _asked(stage: Mapping[str, Any]) -> int:
    """The step that a search or a materialization was asked for; 1 for other stages."""
    return int(stage.get("settings", stage).get("align", 1))
