"""ONNX: trace a trained module, optimize the graph, and write it as a checked file."""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnxslim
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spvit_deploy.core.errors import InputError, JobError, raised_as
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.log_filters import quiet
from spvit_deploy.families.timm_models import disable_fused_attention
from spvit_deploy.lean.blocks import ConvAttention
from spvit_deploy.lean.outputs import NamedOutputs
from spvit_deploy.runtimes.onnx.token_pruning import eliminate_dead_tokens

INPUT_NAME = "images"
MODEL_FILE = "model.onnx"
# protobuf's limit is 2 GiB for a whole message.
_ONE_FILE_BYTES = 2_000_000_000
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SCOPES = "pkg.torch.onnx.name_scopes"


def prepare(module: NamedOutputs, fused: bool = False) -> NamedOutputs:
    """Copy a module for inference, with BatchNorm folded into convolutions.

    Args:
        fused: Whether attention stays one fused operation, as torch runs it best. Otherwise it is
            spelled out, which other runtimes fuse themselves: torch's decomposition of the fused
            one adds shape arithmetic to the graph.
    """
    ready = copy.deepcopy(module).cpu().eval()
    if not fused:
        disable_fused_attention(ready)
    part: Any
    for part in ready.modules():
        if isinstance(part, ConvAttention) and isinstance(part.bn, _BATCH_NORMS):
            part.conv = fuse_conv_bn_eval(part.conv, part.bn)
            part.bn = nn.Identity()
    return ready


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.onnx and onnxslim, whose warnings no user can act on."""
    with warnings.catch_warnings(), quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        yield


def trace(
    module: NamedOutputs, size: tuple[int, int, int], batch: int | None, opset: int
) -> ir.Model:
    """Trace a prepared module to an ONNX graph.

    Args:
        module: From :func:`prepare`; images [B, *size] → one tensor for each of its names.
        batch: Fixed batch, or None for a dynamic one.

    Raises:
        InputError: It cannot be converted to this opset.
    """
    # A trace at batch 1 would freeze the batch.
    example = torch.zeros(batch or 2, *size)
    shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
    failed = raised_as(JobError, "torch cannot export this model", "See --debug.")
    with failed, _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT_NAME],
            output_names=list(module.names),
            opset_version=opset,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    found = model.opset_imports[""]
    if found != opset:
        least = _least_opset(program.model_proto, opset, found)
        raise InputError(
            f"--opset {opset}: this model needs at least {least}.",
            f"Choose --opset {least}.",
        )
    return model


def _least_opset(proto: onnx.ModelProto, below: int, found: int) -> int:
    """Find the first opset above ``below`` that ONNX's converter, which torch uses, can write."""
    for opset in range(below + 1, found):
        with suppress(RuntimeError):
            onnx.version_converter.convert_version(proto, opset)
            return opset
    return found


def name_nodes(model: ir.Model) -> None:
    """Name each node after its module: ``blocks.3.attn.qkv/MatMul_12``."""
    scope = "model"
    for index, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]
        inner = next((part for part in reversed(scopes) if part), "")
        scope = inner.removeprefix("net").removeprefix(".") or scope
        node.name = f"{scope}/{node.op_type}_{index}"
        node.metadata_props.clear()
        node.doc_string = None


def optimize(model: ir.Model) -> onnx.ModelProto:
    """Optimize a graph by onnxslim and by dead-token elimination; nodes keep their names."""
    with _quiet():
        slim: onnx.ModelProto = onnxslim.slim(ir.to_proto(model))
    scope = "model"
    for index, node in enumerate(slim.graph.node):
        if "/" not in node.name:
            node.name = f"{scope}/{node.op_type}_s{index}"
        scope = node.name.split("/")[0]
    optimized = ir.from_proto(slim)
    for value in list(optimized.graph.initializers.values()):
        # The wrapper's name.
        value.name = value.name.removeprefix("net.")
    eliminate_dead_tokens(optimized)
    return ir.to_proto(optimized)


def stamp(proto: onnx.ModelProto, metadata: dict[str, str], version: str) -> None:
    """Write metadata into a model, and remove what differs between runs of the same export."""
    proto.producer_name, proto.producer_version = "spvit-deploy", version
    proto.doc_string = proto.graph.doc_string = ""
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]


def write(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """Write and check a model, and return the names of the files; beyond 2 GB, its weights are
    written to a file beside it.
    """
    names = [MODEL_FILE]
    if proto.ByteSize() > _ONE_FILE_BYTES:
        names.append(f"{MODEL_FILE}.data")
        onnx.save_model(proto, folder / MODEL_FILE, save_as_external_data=True, location=names[1])
    else:
        write_bytes(folder / MODEL_FILE, proto.SerializeToString(deterministic=True))
    with raised_as(JobError, "The ONNX graph is not valid", "Please report it."):
        onnx.checker.check_model(str(folder / MODEL_FILE), full_check=True)
    return names
