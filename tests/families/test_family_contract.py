"""The contract of all families. A new model adds a line to ``MODELS``.

The table of ``docs/families.md`` is made from the same list:
``python -m tests.families.test_family_contract`` updates it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from spvit_deploy.benchmarks.latency_tables.probes import Probes
from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import families, find_family, find_sites, inspect_family
from spvit_deploy.families.timm_models import (
    create_empty,
    create_model,
    input_size,
    preprocessing_of,
)
from spvit_deploy.lean.block_costs import cost_table, parameter_table
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import materialize_weights
from spvit_deploy.lean.model_folder import SavedModel, load_saved, save_model
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.search.supernet import Supernet
from tests.conftest import shake
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs" / "families.md"
SKIPS = "skip and attention, MLPs trimmed"
SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 7}
PYRAMID = {"num_classes": 7, "depths": (2, 2, 2, 2), "embed_dims": (16, 32, 40, 64)}


@dataclass(frozen=True)
class Case:
    """A timm model built small, and the expected support of it."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    takes: str = "all four operations, MLPs trimmed"
    refused: str = ""


def vit(name: str, **args: Any) -> Case:
    return Case(name, {**SMALL, "img_size": 32, "patch_size": 8, **args})


MODELS = (
    vit("vit_small_patch16_224"),
    vit("vit_small_patch16_224", img_size=(32, 48)),
    vit("deit_small_patch16_224"),
    vit("deit_small_distilled_patch16_224"),
    vit("deit3_small_patch16_224"),
    vit("vit_small_patch14_reg4_dinov2"),
    vit("vit_base_patch16_siglip_224", embed_dim=48, num_heads=3),
    vit("vit_small_patch16_224.augreg_in21k"),
    vit("vit_base_patch16_clip_224"),
    vit("vit_relpos_small_patch16_224"),
    vit("vit_giant_patch14_dinov2"),
    vit("beit_base_patch16_224"),
    vit("beitv2_base_patch16_224"),
    vit("eva02_tiny_patch14_224"),
    Case("eva02_base_patch14_224", {**SMALL, "img_size": 32, "patch_size": 8},
         "all four operations, MLPs kept"),
    Case("cait_xxs24_224", {**SMALL, "img_size": 32, "patch_size": 8},
         "all four operations in 4 of 6 blocks, MLPs trimmed"),
    Case("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24,
         "depths": (2, 2), "num_heads": (3, 6), "num_classes": 7}),
    Case("swin_tiny_patch4_window7_224", {"img_size": (48, 72), "window_size": 4,
         "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "num_classes": 7}),
    Case("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4, "embed_dim": 24,
         "depths": (2, 2), "num_heads": (3, 6), "num_classes": 7}),
    Case("hiera_tiny_224", {"img_size": (64, 64), "embed_dim": 24, "num_heads": 1,
         "stages": (1, 2, 3, 1), "num_classes": 7},
         "skip, 1×1 conv and attention in 4 of 7 blocks, MLPs trimmed"),
    Case("pvt_v2_b0", PYRAMID),
    Case("pvt_v2_b2_li", PYRAMID),
    Case("twins_pcpvt_small", {**PYRAMID, "img_size": 64}),
    Case("twins_svt_small", {**PYRAMID, "img_size": 64}),
    Case("efficientformer_l1", {"num_classes": 7, "depths": (1, 1, 1, 3), "num_vit": 2,
         "embed_dims": (16, 24, 32, 48)},
         "all four operations in 2 of 6 blocks, MLPs trimmed"),
    Case("xcit_nano_12_p16_224", {**SMALL, "img_size": 32, "depth": 2, "cls_attn_layers": 1},
         "skip and attention in 2 of 3 blocks, MLPs trimmed"),
    Case("convit_tiny", {**SMALL, "embed_dim": 16, "img_size": 32, "patch_size": 8}),
    Case("crossvit_tiny_240", {"num_classes": 7}, SKIPS),
    Case("pit_ti_224", {"num_classes": 7, "img_size": 64, "base_dims": (16, 16, 16),
         "depth": (1, 2, 1), "heads": (2, 4, 8)}),
    Case("tnt_s_legacy_patch16_224", {"num_classes": 7, "img_size": 32, "embed_dim": 48,
         "inner_dim": 24, "depth": 3, "num_heads_outer": 4}),
    Case("nest_tiny", {"num_classes": 7, "img_size": 32}, SKIPS),
    Case("swinv2_cr_tiny_224", {"num_classes": 7, "img_size": 64, "window_size": 4,
         "embed_dim": 24, "depths": (1, 1, 2), "num_heads": (2, 4, 8)}, SKIPS),
    Case("samvit_base_patch16", {**SMALL, "img_size": 64, "num_heads": 3,
         "global_attn_indexes": (1,), "window_size": 3}),
    Case("gcvit_xxtiny", {"num_classes": 7, "img_size": 64, "embed_dim": 16}, SKIPS),
    Case("davit_tiny", {"num_classes": 7, "depths": (1, 1), "embed_dims": (24, 48),
         "num_heads": (2, 4)}, SKIPS),
    Case("test_maxvit", {"num_classes": 7}, SKIPS),
    Case("test_coatnet", {"num_classes": 7},
         "skip and attention in 1 of 3 blocks, MLPs trimmed"),
    Case("mobilevit_xxs", {"num_classes": 7}, SKIPS),
    Case("tiny_vit_5m_224", {"num_classes": 7, "embed_dims": (16, 32, 32, 64),
         "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)}, SKIPS),
    Case("levit_128s", {"num_classes": 7, "img_size": 64}, SKIPS),
    Case("visformer_tiny", {"num_classes": 7, "img_size": 64, "depth": (1, 1, 1),
         "embed_dim": 48}, SKIPS),
    Case("efficientformerv2_s0", {"num_classes": 7}, SKIPS),
    Case("fastvit_sa12", {"num_classes": 7, "layers": (1, 1, 1, 2),
         "embed_dims": (16, 32, 32, 64)},
         "skip and attention in 2 of 5 blocks, MLPs trimmed"),
    Case("vitamin_small_224", {"num_classes": 7, "img_size": 64, "depth": 3}),
    Case("mvitv2_tiny", {"num_classes": 7, "img_size": 64}, "attention kept, MLPs trimmed"),
    Case("naflexvit_base_patch16_gap", {"num_classes": 7, "embed_dim": 48, "depth": 3,
         "num_heads": 3}),
    Case("vit_small_patch16_224", {**SMALL, "dynamic_img_size": True},
         refused="its token grid changes with the image (dynamic_img_size=True)"),
    Case("swin_tiny_patch4_window7_224", {"strict_img_size": False, "embed_dim": 24},
         refused="its windows change with the image (strict_img_size=False)"),
    Case("vit_base_patch16_xp_224", {"depth": 1},
         refused="its blocks compute attention and MLP from one fused projection"),
    Case("vit_base_patch16_18x2_224", {**SMALL},
         refused="its blocks run several attentions in parallel"),
    Case("mixer_s32_224", refused="no family takes a MlpMixer"),
    Case("convnext_atto", refused="no family takes a ConvNeXt"),
    Case("resnet18", refused="no family takes a ResNet"),
)  # fmt: skip


def label(case: Case) -> str:
    extra = [f"{k}={v}" for k, v in case.args.items() if k in ("img_size", "dynamic_img_size")]
    return " ".join([case.name, *extra[:1]])


# The first model of each of these names stands for its family in `make test`.
QUICK = (
    "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_224",
    "cait_xxs24_224", "pvt_v2_b0", "hiera_tiny_224", "efficientformer_l1", "samvit_base_patch16",
    "tnt_s_legacy_patch16_224", "test_coatnet",
)  # fmt: skip
ALL_TAKEN = [case for case in MODELS if not case.refused]
FIRST = [next(case for case in ALL_TAKEN if case.name == name) for name in QUICK]
TAKEN = pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in FIRST else [pytest.mark.slow]) for c in ALL_TAKEN],
    ids=map(label, ALL_TAKEN),
)


def spec_of(case: Case) -> ModelSpec:
    return ModelSpec(name=case.name, args=case.args)


def what_it_takes(sites: list[BlockSite]) -> str:
    """Describe the sites as the table does."""
    most = max((site.kinds for site in sites), key=len)
    those = sum(site.kinds == most for site in sites)
    operations = {
        4: "all four operations", 3: "skip, 1×1 conv and attention", 2: "skip and attention",
        1: "attention kept",
    }[len(most)]  # fmt: skip
    where = "" if those == len(sites) else f" in {those} of {len(sites)} blocks"
    trimmed = sum(site.hidden > 0 for site in sites)
    mlps = "MLPs trimmed" if trimmed == len(sites) else "some MLPs trimmed" if trimmed else ""
    return f"{operations}{where}, {mlps or 'MLPs kept'}"


def every_kind_plan(spec: ModelSpec, sites: list[BlockSite]) -> PrunePlan:
    """Plan the kinds in rotation; MLPs keep a third, none, or all of their units."""
    blocks = []
    for index, site in enumerate(sites):
        keep = [range(0, site.hidden, 3), range(0), range(site.hidden)][index % 3]
        kind = site.kinds[(index + 1) % len(site.kinds)]
        blocks.append(BlockPlan(path=site.path, attention=kind, mlp_keep=tuple(keep)))
    return PrunePlan(model=spec, blocks=tuple(blocks))


@TAKEN
def test_plan_to_lean_to_onnx(case: Case, tmp_path: Path) -> None:
    from spvit_deploy.workflows.export import export_model

    spec = spec_of(case)
    torch.manual_seed(0)
    net = shake(Supernet(create_model(spec), spec))
    plan = every_kind_plan(spec, net.sites)
    net.fix(plan)
    size = input_size(net.model)
    images = torch.randn(2, *size)
    with torch.no_grad():
        wanted = net(images)
    dense, extras = net.dense_and_extras()
    module = create_model(spec)
    module.load_state_dict(dense)
    table = cost_table(module, find_sites(module, case.name), size)
    lean = materialize_weights(module.eval(), extras, plan)
    with torch.no_grad():
        torch.testing.assert_close(lean(images), wanted, atol=1e-4, rtol=1e-4)
    spared = table.of_plan(plan) - count_cost(lean, size).macs
    # FastViT's MLP begins with a convolution, which goes with the last hidden unit.
    assert spared > 0 if case.name.startswith("fastvit") else spared == 0
    held = parameter_table(module, find_sites(module, case.name)).of_plan(plan)
    assert held == count_cost(lean, size).params

    save_model(SavedModel(lean, spec, preprocessing_of(module), plan=plan), tmp_path / "lean")
    loaded = load_saved(tmp_path / "lean").module
    torch.testing.assert_close(loaded.state_dict(), lean.state_dict(), rtol=0, atol=0)
    with torch.no_grad():  # kernels may differ by where the weights lie in memory
        torch.testing.assert_close(loaded(images), lean(images))
    export_model(str(tmp_path / "lean"), tmp_path / "onnx")
    session = open_session(tmp_path / "onnx", "onnxruntime")
    np.testing.assert_allclose(session.run(images.numpy()), wanted.numpy(), atol=2e-3, rtol=1e-3)


# One model of each block interface: tokens, maps, windows, two streams, tokens beside a class
# token, blocks that change the size of their input.
BLOCK_INTERFACES = (
    "vit_relpos_small_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "hiera_tiny_224", "pvt_v2_b0",
    "twins_svt_small", "tnt_s_legacy_patch16_224", "samvit_base_patch16", "mvitv2_tiny",
    "visformer_tiny", "naflexvit_base_patch16_gap",
)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[] if c.name in QUICK[:3] else [pytest.mark.slow])
        for c in ALL_TAKEN
        if c.name in BLOCK_INTERFACES
    ],
    ids=lambda case: label(case),
)
def test_single_blocks_run_to_be_timed(case: Case) -> None:
    model = create_model(spec_of(case))
    probes = Probes(model.eval(), spec_of(case), batch=2)
    size = input_size(model)
    for probe in probes.blocks.values():
        with torch.no_grad():
            tokens = probe.chain()(torch.randn(2, *probe.call.size))
        assert len(tokens) == 2
        assert torch.isfinite(tokens).all()
    with torch.no_grad():
        for anchor in probes.anchors.values():
            assert anchor(torch.randn(2, *size)) is not None
    # Blocks that compute the same are timed once.
    assert len(probes.blocks) <= 11 * len({s.attention[AttentionKind.MSA] for s in probes.sites})


@TAKEN
def test_a_training_step_reaches_every_gate(case: Case) -> None:
    spec = spec_of(case)
    torch.manual_seed(0)
    net = Supernet(create_model(spec), spec).train()
    scores = net(torch.randn(2, *input_size(net.model)))
    scores = scores[0] if isinstance(scores, tuple) else scores
    scores.square().mean().backward()
    for site, attention, mlp in zip(net.sites, net.attentions, net.mlps, strict=True):
        if len(site.kinds) > 1:
            assert attention.gate_logits.grad is not None
        if site.hidden:
            assert mlp.unit_logits.grad is not None


@TAKEN
def test_what_is_searched_matches_the_table(case: Case) -> None:
    sites = find_sites(create_empty(spec_of(case)), case.name)
    assert what_it_takes(sites) == case.takes


def test_each_family_has_a_model_in_the_quick_tests() -> None:
    found = {type(find_family(create_empty(spec_of(case)), case.name)) for case in FIRST}
    built_in = {type(f) for f in families() if type(f).__module__.startswith("spvit_deploy.")}
    assert found == built_in
    assert len(FIRST) == len(found)


@pytest.mark.parametrize("case", [c for c in MODELS if c.refused], ids=label)
def test_refusals_name_the_reason(case: Case) -> None:
    if not timm.is_model(case.name):
        pytest.skip(f"timm {timm.__version__} has no {case.name}")
    _, refusal = inspect_family(create_empty(spec_of(case)))
    assert refusal is not None
    assert refusal.reason.startswith(case.refused)


def test_pointwise_swin_blocks_have_no_windows(tmp_path: Path) -> None:
    import onnx

    from spvit_deploy.workflows.export import export_model

    case = next(c for c in MODELS if c.name.startswith("swin_"))
    spec = spec_of(case)
    kinds = {"pointwise": ["skip", "conv1x1", "conv1x1", "skip"], "windowed": ["msa"] * 4}
    counts = {}
    for name, row in kinds.items():
        net = shake(Supernet(create_model(spec), spec))
        blocks = [
            BlockPlan(path=site.path, attention=AttentionKind(kind), mlp_keep=range(site.hidden))
            for site, kind in zip(net.sites, row, strict=True)
        ]
        plan = PrunePlan(model=spec, blocks=tuple(blocks))
        dense, extras = net.dense_and_extras()
        module = create_model(spec)
        module.load_state_dict(dense)
        lean = materialize_weights(module, extras, plan)
        names = {type(part).__name__ for part in lean.modules()}
        assert ("SwinTransformerBlock" in names) is (name == "windowed")
        folder = tmp_path / name
        save_model(SavedModel(lean, spec, preprocessing_of(module), plan=plan), folder)
        export_model(str(folder), tmp_path / f"{name}-onnx")
        graph = onnx.load(tmp_path / f"{name}-onnx" / "model.onnx").graph
        nodes = [node for node in graph.node if ".blocks." in node.name]
        counts[name] = {op: sum(n.op_type == op for n in nodes) for op in ("Transpose", "Slice")}
        softmaxes = sum(node.op_type == "Softmax" for node in graph.node)
        assert softmaxes == (4 if name == "windowed" else 0)
    assert counts["pointwise"] == {"Transpose": 0, "Slice": 0}
    assert counts["windowed"]["Transpose"] >= 8


def table() -> str:
    """Build the table of ``docs/families.md``."""
    rows = ["| timm model | built with | what can be searched |", "| --- | --- | --- |"]
    for case in MODELS:
        if not timm.is_model(case.name.split(".")[0]):
            continue
        family, refusal = inspect_family(create_empty(spec_of(case)))
        if refusal is None and family is not None:
            text = what_it_takes(find_family(create_empty(spec_of(case)), "").sites(
                create_empty(spec_of(case))))  # fmt: skip
        else:
            text = f"refused: {refusal.reason if refusal else ''}"
        shape = {k: v for k, v in case.args.items() if k in ("img_size", "dynamic_img_size",
                 "strict_img_size")}  # fmt: skip
        built = ", ".join(f"{key}={value}" for key, value in shape.items())
        rows.append(f"| `{case.name}` | {built} | {text} |")
    return "\n".join(rows) + "\n"


@pytest.mark.slow
def test_the_documented_table_is_this_one() -> None:
    assert table() in DOCS.read_text(), "python -m tests.families.test_family_contract"


if __name__ == "__main__":
    text = DOCS.read_text()
    start, end = text.index("| timm model"), text.index("\n\n", text.index("| timm model"))
    DOCS.write_text(text[:start] + table().rstrip("\n") + text[end:])
