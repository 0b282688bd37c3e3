"""The graph computes no token of the last blocks that no output depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.lean.outputs import NamedOutputs
from spvit_deploy.runtimes.onnx import graph
from tests.conftest import NAME, TINY

Tokens = dict[str, list[int]]


def exported(module: torch.nn.Module, what: str | None = None) -> onnx.ModelProto:
    outputs = NamedOutputs(module.eval(), what, None, (1, 16, 16))
    proto = graph.trace(graph.prepare(outputs), (1, 16, 16), None, 20)
    graph.name_nodes(proto)
    proto = graph.optimize(proto)
    onnx.checker.check_model(proto, full_check=True)
    with torch.no_grad():
        images = torch.randn(3, 1, 16, 16)
        wanted = outputs(images)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for found, tensor in zip(session.run(None, {"images": images.numpy()}), wanted, strict=True):
        np.testing.assert_allclose(found, tensor.numpy(), atol=1e-5)
    return proto


def rows(proto: onnx.ModelProto) -> Tokens:
    """Tokens that the linear layers of each module compute, as the graph itself says."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in inferred.value_info}
    found: Tokens = {}
    for node in inferred.node:
        if node.op_type == "MatMul" and len(shapes[node.output[0]]) == 3:
            found.setdefault(node.name.split("/")[0], []).append(
                shapes[node.output[0]][1].dim_value
            )
    return found


def dense(**args: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(ModelSpec(name=args.pop("name", NAME), args={**TINY, **args}))


def test_the_last_block_computes_only_the_class_token() -> None:
    found = rows(exported(dense(qk_norm=True, init_values=0.1)))
    assert found["blocks.2.attn.qkv"] == [17]
    assert found["blocks.2.attn.proj"] == found["blocks.2.mlp.fc1"] == [1]
    assert found["blocks.1.mlp.fc2"] == [17]


def test_operations_only_on_the_map_are_left_out(
    make_lean: Callable[..., tuple[SavedModel, Any]],
) -> None:
    """A class token passes convolutions by: what they compute after the last attention is lost."""
    saved, _ = make_lean(["msa", "conv3x3", "skip"], [96, 40, 30])
    proto = exported(saved.module)
    found = rows(proto)
    assert found["blocks.0.attn.qkv"] == [17]
    assert (
        found["blocks.0.mlp.fc1"] == found["blocks.1.mlp.fc1"] == found["blocks.2.mlp.fc2"] == [1]
    )
    assert sum(node.op_type == "Conv" for node in proto.graph.node) == 1  # patches


def test_a_map_that_attention_reads_stays(
    make_lean: Callable[..., tuple[SavedModel, Any]],
) -> None:
    saved, _ = make_lean(["conv3x3", "conv1x1", "msa"], [96, 40, 30], reg_tokens=2)
    found = rows(exported(saved.module))
    assert found["blocks.1.mlp.fc1"] == [19]
    assert found["blocks.2.mlp.fc1"] == [1]


def test_two_tokens_are_read_of_a_distilled_model() -> None:
    found = rows(exported(dense(name="deit_tiny_distilled_patch16_224", weight_init="")))
    assert found["blocks.2.mlp.fc1"] == [2]


@pytest.mark.parametrize("args", [{"global_pool": "avg"}, {"global_pool": "map"}])
def test_a_pool_over_all_tokens_keeps_them(args: dict[str, Any]) -> None:
    assert rows(exported(dense(**args)))["blocks.2.mlp.fc1"] == [17]


def test_tokens_that_are_an_output_stay() -> None:
    found = rows(exported(dense(), "all"))
    assert found["blocks.2.mlp.fc1"] == [17]
