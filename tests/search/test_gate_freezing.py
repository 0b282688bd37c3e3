"""Gates that have converged are fixed and no longer computed, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.data.batches import open_batches
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.families.timm_models import create_model, input_size, preprocessing_of
from spvit_deploy.search.gated_mlp import filled
from spvit_deploy.search.gates import GateFreezer, sharpness
from spvit_deploy.search.search import SearchSettings, probe_of, run_search
from spvit_deploy.search.supernet import Supernet
from tests.conftest import tiny_spec

SPECS = [
    tiny_spec(),
    ModelSpec(
        name="eva02_tiny_patch14_224",
        args={"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 3},
    ),
    ModelSpec(
        name="pvt_v2_b0",
        args={"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 40, 64]},
    ),
]
SIDES = [[1, 1, 0], [1, -1, 0], [-1, 1, 1], [1, 1, 1]]


def net_of(spec: ModelSpec) -> Supernet:
    torch.manual_seed(0)
    return Supernet(create_model(spec), spec).train()


def fixed_gates(net: Supernet, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    random = torch.Generator().manual_seed(seed)
    attention = [torch.tensor(SIDES[index % 4]) for index in range(len(net.sites))]
    units = [-(torch.rand(s.hidden, generator=random) < 0.5).int() for s in net.sites]
    units[-1][:] = -1
    return attention, units


def step(net: Supernet, seed: int) -> Tensor:
    torch.manual_seed(seed)
    scores: Any = net(torch.randn(2, *input_size(net.model)))
    scores.square().sum().backward()
    return scores.detach()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_supernet_with_fixed_gates_trains_as_with_certain_samples(
    spec: ModelSpec, seed: int
) -> None:
    small, whole = net_of(spec), net_of(spec)
    attention, units = fixed_gates(small, seed)
    small.freeze(attention, units)
    for site, kinds, closed in zip(whole.sites, attention, units, strict=True):
        branch, mlp = site.attn, site.mlp
        branch.gate_logits.data[kinds != 0] = 40.0 * kinds[kinds != 0].float()
        mlp.unit_logits.data[closed < 0] = -40.0
    torch.testing.assert_close(step(small, seed), step(whole, seed))
    pairs = zip(small.named_parameters(), whole.named_parameters(), strict=True)
    for (name, ours), (_, theirs) in pairs:
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)
        elif theirs.grad is not None:
            assert theirs.grad.abs().max() < 1e-6, name


def test_closed_units_are_not_computed() -> None:
    net = net_of(tiny_spec())
    attention, units = fixed_gates(net, 0)
    widths: list[int] = []
    net.freeze(attention, units)
    handles = [
        mlp._live.shell.fc1.register_forward_hook(lambda _m, _i, y: widths.append(y.shape[-1]))
        for mlp in net.mlps
        if mlp._live
    ]
    step(net, 0)
    assert widths == [int((row >= 0).sum()) or 1 for row in units]
    assert handles


def test_gates_are_fixed_after_three_checks_that_agree() -> None:
    net = net_of(tiny_spec())
    freezer = GateFreezer(net, 2)
    logits = net.mlps[0].unit_logits.data
    logits[0], logits[1] = -3.5, -3.5
    for turn in range(6):
        if turn == 3:
            logits[1] = -2.0
        freezer.step()
    logits[0] = 0.5  # a fixed gate does not move
    freezer.step()
    freezer.step()
    assert logits[0] == -3.0
    live = net.mlps[0]._live
    assert live is not None
    assert live.units.tolist() == list(range(1, 96))
    again = GateFreezer(net_of(tiny_spec()), 2)
    again.load_state_dict(freezer.state_dict())
    assert again._supernet.mlps[0]._live is not None


def test_sharper_samples_fix_gates_nearer_to_zero() -> None:
    net = net_of(tiny_spec())
    net.sharpness = 8.0
    freezer = GateFreezer(net, 1)
    net.mlps[0].unit_logits.data[:2] = torch.tensor([-0.4, -0.3])
    for _ in range(3):
        freezer.step()
    live = net.mlps[0]._live
    assert live is not None
    assert live.units.tolist() == list(range(1, 96))


@pytest.mark.parametrize("final", [1.0, 8.0])
def test_sharpness_rises_from_one_to_its_final_value(final: float) -> None:
    course = [sharpness(step / 100, final) for step in range(101)]
    assert course == sorted(course)
    assert course[:21] == [1.0] * 21
    assert course[90:] == [final] * 11


def test_an_annealed_search_ends_near_its_budget() -> None:
    off = []
    for final in (1.0, 8.0):
        net = net_of(tiny_spec(num_classes=10))
        data = DataSettings(spec="digits", batch_size=128)
        batches = open_batches(data, preprocessing_of(net.model), True)
        result = run_search(net, batches, SearchSettings(epochs=4, lr=2e-3, sharpness=final))
        budget = result.plan.budget
        assert budget is not None
        fraction = result.projection.cost_before / budget.dense_macs
        off.append(abs(fraction - 0.5))
    assert off[1] < 0.05 < off[0]


def test_no_attention_is_fixed_open_while_the_price_of_cost_rises() -> None:
    net = net_of(tiny_spec())
    freezer = GateFreezer(net, 1, rising=5)
    logits = net.attentions[0].gate_logits.data
    logits[:] = 3.5
    sides = []
    for _ in range(10):
        freezer.step()
        sides.append(bool(freezer._agreed[0].ge(3).all()))
    assert sides == [False] * 7 + [True] * 3


def test_evaluation_outputs_do_not_change() -> None:
    net = net_of(tiny_spec())
    attention, units = fixed_gates(net, 1)
    for mlp, row in zip(net.mlps, units, strict=True):
        mlp.unit_logits.data[row < 0] = -3.5
    images = torch.randn(2, *input_size(net.model))
    with torch.no_grad():
        before = net.eval()(images)
        net.freeze(attention, units)
        assert torch.equal(net(images), before)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_quarter_of_equal_images_gives_closed_gates_the_same_gradient(
    spec: ModelSpec, seed: int
) -> None:
    every, quarter = net_of(spec), net_of(spec)
    quarter.probe(4)
    images = torch.randn(2, *input_size(every.model)).repeat(4, 1, 1, 1)
    scores = []
    for net in (every, quarter):
        for site in net.sites:
            site.mlp.unit_logits.data.normal_(generator=torch.Generator().manual_seed(seed))
        net.seed_draws(seed)
        scores.append(net(images))
        scores[-1].square().sum().backward()
    torch.testing.assert_close(*scores)
    for (name, one), (_, few) in zip(
        every.named_parameters(), quarter.named_parameters(), strict=True
    ):
        if one.grad is not None or few.grad is not None:
            torch.testing.assert_close(one.grad, few.grad, atol=2e-4, rtol=2e-3, msg=name)


def test_of_closed_units_a_quarter_of_the_images_is_computed() -> None:
    net = net_of(tiny_spec())
    net.probe(4)
    seen: list[tuple[int, int]] = []
    forward = torch.nn.GELU.forward

    def counted(activation: torch.nn.GELU, x: Tensor) -> Tensor:
        seen.append((len(x), x.shape[-1]))
        return forward(activation, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.GELU, "forward", counted)
        net(torch.randn(8, *input_size(net.model)))
    assert [count for count, _ in seen] == [8, 2] * 3
    assert [seen[i][1] + seen[i + 1][1] for i in (0, 2, 4)] == [site.hidden for site in net.sites]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_live_units_are_filled_up_to_a_width_that_is_fast(units: list[bool]) -> None:
    live = torch.tensor(units)
    more = filled(live)
    assert bool((more | ~live).all())
    assert int(more.sum()) == min(len(units), -(-int(live.sum()) // 8) * 8)


def test_gates_are_probed_with_all_images_on_a_gpu() -> None:
    assert [probe_of(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [4, 1, 1]
