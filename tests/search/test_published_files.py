"""The seven searches that SPViT's authors publish: all import, and cost what the docs say.

``python -m tests.search.test_published_files`` rewrites the tables of ``docs/published.md``;
it needs the authors' files.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty
from spvit_deploy.lean.materialize import plan_costs
from spvit_deploy.search.published.import_model import import_plan
from tests.helpers.calls import good
from tests.helpers.paths import ROOT
from tests.search.test_import_published import REFERENCE

PUBLISHED = REFERENCE / "published"
DOCS = ROOT / "docs" / "published.md"


@dataclass(frozen=True)
class Search:
    """One published search, and what the paper's table says of it, in GFLOPs."""

    title: str
    config: str
    gates: str
    lean: str
    dense: str


SEARCHES = (
    Search("DeiT-Ti", "DeiT/spvit_deit_ti_l200_t10_ft.json",
           "DeiT/spvit_deit_ti_l200_t10_search_10epoch.pth", "1.0", "1.3"),
    Search("DeiT-S", "DeiT/spvit_deit_sm_l30_t32_ft.json",
           "DeiT/spvit_deit_sm_l30_t32_search_10epoch.pth", "3.3", "4.6"),
    Search("DeiT-B", "DeiT/spvit_deit_bs_l008_t60_ft.json",
           "DeiT/spvit_deit_bs_l008_t60_search_10epoch.pth", "8.3", "17.5"),
    Search("DeiT-B, larger budget", "DeiT/spvit_deit_bs_l006_t100_ft.json",
           "DeiT/spvit_deit_bs_l006_t100_search_15epoch.pth", "–", "17.5"),
    Search("Swin-T", "Swin/spvit_swin_tn_l28_t32_ft.yaml",
           "Swin/spvit_swin_t_l28_t32_search_12epoch.pth", "3.3", "4.5"),
    Search("Swin-S", "Swin/spvit_swin_sm_l04_t55_ft.yaml",
           "Swin/spvit_swin_sm_l04_t55_search_14epoch.pth", "6.1", "8.7"),
    Search("Swin-B", "Swin/spvit_swin_bs_l01_t100_ft.yaml",
           "Swin/spvit_swin_bs_l01_t100_search_20epoch.pth", "–", "–"),
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """MACs by our convention, and what the authors' adds and leaves out."""

    ours: int
    norms: int
    class_token: int

    @property
    def authors(self) -> int:
        return self.ours + self.norms - self.class_token


def plan_of(search: Search) -> PrunePlan:
    return import_plan(PUBLISHED / search.config, PUBLISHED / search.gates)


def counts(plan: PrunePlan, macs: int, widths: list[int]) -> Counts:
    """The authors count a multiply-add a channel and token for every LayerNorm of Swin and for
    those in DeiT's blocks, and DeiT's MLPs without the class token.
    """
    model = create_empty(plan.model)
    sites = find_sites(model, str(plan.model))
    tokens = [site.grid_tokens + site.prefix for site in sites]
    norms = sum(2 * site.dim * n for site, n in zip(sites, tokens, strict=True))
    if sites[0].prefix:
        return Counts(macs, norms, sum(2 * s.dim * w for s, w in zip(sites, widths, strict=True)))
    first, last = sites[0], sites[-1]
    between = [(a, b) for a, b in itertools.pairwise(sites) if a.grid != b.grid]
    stages = len(between) + 1
    # Of the last norm they count H·W / 2^stages tokens, where 4^(stages − 1) would be meant.
    norms += first.dim * first.grid_tokens + last.dim * (first.grid_tokens >> stages)
    norms += sum(4 * before.dim * after.grid_tokens for before, after in between)
    return Counts(macs, norms, 0)


def both(search: Search) -> tuple[Counts, Counts, int, int]:
    """Counts of dense and lean, parameters of dense and lean."""
    plan = plan_of(search)
    dense, lean = plan_costs(plan)
    sites = find_sites(create_empty(plan.model), "")
    whole = counts(plan, dense.macs, [site.hidden for site in sites])
    left = counts(plan, lean.macs, [len(block.mlp_keep) for block in plan.blocks])
    return whole, left, dense.params, lean.params


def giga(macs: int) -> str:
    return f"{macs / 1e9:.4f}"


def tables() -> tuple[str, str]:
    """The counts, and the difference between the conventions, as Markdown."""
    rows = ["| model | dense: ours | authors' formula | paper | lean: ours | authors' formula "
            "| paper | lean/dense | parameters, dense | lean |",
            "| --- " * 10 + "|"]  # fmt: skip
    gaps = ["| model | dense: ours | + norms | − class token | = formula | lean: ours | + norms "
            "| − class token | = formula |", "| --- " * 9 + "|"]  # fmt: skip
    for search in SEARCHES:
        dense, lean, dense_params, lean_params = both(search)
        rows.append(
            f"| {search.title} | {giga(dense.ours)} | {giga(dense.authors)} | {search.dense} "
            f"| {giga(lean.ours)} | {giga(lean.authors)} | {search.lean} "
            f"| {lean.ours / dense.ours:.1%} | {dense_params:,} | {lean_params:,} |"
        )
        cells = [
            cell
            for c in (dense, lean)
            for cell in (f"{c.ours:,}", f"{c.norms:,}", f"{c.class_token:,}", f"{c.authors:,}")
        ]
        gaps.append("| " + " | ".join([search.title, *cells]) + " |")
    return "\n".join(rows) + "\n", "\n".join(gaps) + "\n"


needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the authors' files are not here"
)


@needs_published
@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.title)
def test_every_published_search_imports(search: Search, tmp_path: Path) -> None:
    good("import", "--config", PUBLISHED / search.config, "--gates", PUBLISHED / search.gates,
         "-o", tmp_path / "gates")  # fmt: skip
    text = good("inspect", tmp_path / "gates").output
    assert all(word in text for word in ("macs", "params", "mlp width", "msa"))
    _, lean, _, _ = both(search)
    assert f"{lean.ours:,}" in text
    if search.lean != "–" and search.title != "DeiT-B":
        assert f"{lean.authors / 1e9:.1f}" == search.lean


@needs_published
def test_the_documented_counts_are_these() -> None:
    text = DOCS.read_text()
    for table in tables():
        assert table in text


def _rewrite() -> None:
    text = DOCS.read_text()
    for table in tables():
        head = table.split("\n", 1)[0]
        start = text.index(head)
        text = text[:start] + table + text[text.index("\n\n", start) + 1 :]
    DOCS.write_text(text)


if __name__ == "__main__":
    _rewrite()
