"""What every candidate of a supernet is held to."""

from __future__ import annotations

import torch
from torch import nn

from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.families.timm_models import create_model, input_size
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import materialize_weights
from spvit_deploy.search.budget_target import cost_table_of
from spvit_deploy.search.supernet import Supernet


def require_lean_equals_supernet(net: Supernet, plan: PrunePlan, atol: float = 1e-5) -> nn.Module:
    """Hard gates answer and cost as the lean model that they make, which is returned."""
    size = input_size(net.model)
    net.fix(plan)
    dense, extras = net.dense_and_extras()
    module = create_model(plan.model)
    module.load_state_dict(dense)
    lean, images = materialize_weights(module, extras, plan), torch.randn(2, *size)
    with torch.no_grad():
        torch.testing.assert_close(lean(images), net(images), atol=atol, rtol=1e-4)
    table = cost_table_of(net)
    assert table.of_plan(plan) == count_cost(lean, size).macs
    assert table.dense == count_cost(module, size).macs
    assert cost_table_of(net, "params").of_plan(plan) == count_cost(lean, size).params
    return lean
