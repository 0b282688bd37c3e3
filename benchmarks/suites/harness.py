"""What suites share: records, tables and images of the docs, models with the published plans."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.reporting.html_page import render_png
from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.lean.model_folder import dense_saved, save_model

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).resolve().parents[2] / "docs"
_END = "<!-- end of the table -->"
_BLOCKS = [f"blocks.{index}" for index in range(12)]
_SWIN_BLOCKS = [
    f"layers.{stage}.blocks.{index}"
    for stage, depth in enumerate((2, 2, 6, 2))
    for index in range(depth)
]


def save(name: str, record: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` with the host's record."""
    RESULTS.mkdir(exist_ok=True)
    content = {**record, "host": read_host().model_dump(mode="json")}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def replace_table(page: Path, suite: str, content: str) -> None:
    """Replace what a page has between ``<!-- table: SUITE -->`` and the table's end."""
    start = f"<!-- table: {suite} -->"
    before, rest = page.read_text().split(start)
    _, end, after = rest.partition(_END)
    page.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}")


def write_image(figure: Any, name: str) -> None:
    """Write a plotly figure as ``docs/images/NAME``, if a Chromium is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        figure.write_html(page, default_width="100%", config={"displayModeBar": False})
        render_png(page, DOCS / "images" / name)


def plan_of(
    name: str, paths: Sequence[str], kinds: Sequence[str], widths: Sequence[int]
) -> PrunePlan:
    """Build the plan of a timm model that keeps the first hidden units of each block."""
    blocks = tuple(
        BlockPlan(path=path, attention=AttentionKind(kind), mlp_keep=tuple(range(width)))
        for path, kind, width in zip(paths, kinds, widths, strict=True)
    )
    return PrunePlan(model=ModelSpec(name=name), blocks=blocks)


DEIT_B = plan_of(
    "deit_base_patch16_224", _BLOCKS,
    ["conv1x1"] * 3 + ["conv3x3"] * 2 + ["msa"] * 7,
    [1118, 489, 1050, 1345, 1336, 1326, 1431, 1564, 1606, 1702, 1290, 190],
)  # fmt: skip
DEIT_S = plan_of(
    "deit_small_patch16_224", _BLOCKS,
    ["conv1x1"] + ["msa"] * 11,
    [1304, 1399, 1344, 1214, 1251, 1183, 1140, 925, 742, 391, 104, 103],
)  # fmt: skip
SWIN_T = plan_of(
    "swin_tiny_patch4_window7_224", _SWIN_BLOCKS,
    ["conv1x1", "skip", "conv1x1", "skip"] + ["msa"] * 8,
    [186, 152, 646, 504, 1350, 1319, 1289, 1249, 1234, 1082, 3041, 2994],
)  # fmt: skip


def with_wider_mlps(plan: PrunePlan, step: int) -> PrunePlan:
    """Return the plan with its widths rounded up to multiples of ``step``."""
    blocks = tuple(
        block.model_copy(update={"mlp_keep": tuple(range(-(-len(block.mlp_keep) // step) * step))})
        for block in plan.blocks
    )
    return plan.model_copy(update={"blocks": blocks})


def with_biases(model: nn.Module) -> nn.Module:
    """Draw biases, as a trained model has them: an optimizer drops the addition of zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
    return model.eval()


def build_model(plan: PrunePlan, lean: bool, folder: Path) -> Path:
    """Write the lean or the dense model of a plan, with random weights."""
    torch.manual_seed(0)
    saved = dense_saved(create_model(plan.model), plan.model)
    if lean:
        shape_lean(saved.module, plan)
        saved = replace(saved, plan=plan)
    with_biases(saved.module)
    save_model(saved, folder)
    return folder
