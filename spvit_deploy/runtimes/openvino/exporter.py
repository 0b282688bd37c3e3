"""OpenVINO's own files: ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openvino

from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.errors import JobError, RuntimeMissingError, raised_as
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.log_filters import quiet, silenced
from spvit_deploy.runtimes.calibration import (
    Calibration,
    calibration_batches,
    find_classifiers,
    quantize_with_control,
)
from spvit_deploy.runtimes.export_job import Accuracy, ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, MODEL_FILE, write
from spvit_deploy.runtimes.onnx.preprocessing_graph import SCOPE, preprocessing_graph
from spvit_deploy.runtimes.openvino.session import openvino_core

# Where the session reads the precision that the compiler is to use.
PRECISION_INFO = ["spvit_deploy", "precision"]
_XML = "model.xml"
_FP32 = {"INFERENCE_PRECISION_HINT": "f32"}
# What NNCF's transformer preset quantizes.
_INT8 = ("MatMul", "Convolution", "ScaledDotProductAttention")


def export_openvino(job: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Convert the ONNX graph; weights keep their precision.

    Raises:
        JobError: OpenVINO cannot convert it.
        RuntimeMissingError: int8 without NNCF.
    """
    accuracy = None
    with tempfile.TemporaryDirectory() as scratch:
        write(job.proto, Path(scratch))
        with raised_as(JobError, "OpenVINO cannot convert the graph", "Please report it."):
            model = openvino.convert_model(Path(scratch) / MODEL_FILE)
        if job.calibration is not None:
            model, accuracy = _quantize(model, job.calibration, job.batch or 1, note)
        if job.preprocessing is not None:
            model = _prepend_preprocessing(model, job)
        model.set_rt_info(job.precision, PRECISION_INFO)
        for key, value in job.metadata.items():
            model.set_rt_info(value, key.split(".", 1))
        openvino.save_model(model, folder / _XML, compress_to_fp16=False)
        if job.preprocessing is not None:
            _keep_precise(folder / _XML)
    return WrittenFiles((_XML, "model.bin"), accuracy)


def _prepend_preprocessing(model: Any, job: ExportJob) -> Any:
    """Put the preprocessing before the model: uint8 [B, H, W, C] in, of any height and width."""
    assert job.preprocessing is not None
    opset = next(o.version for o in job.proto.opset_import if o.domain in ("", "ai.onnx"))
    front = preprocessing_graph(job.preprocessing, job.batch, opset, INPUT_NAME)
    prepare = openvino_core().read_model(front.SerializeToString())
    model.get_parameters()[0].output(0).replace(prepare.get_results()[0].input_value(0))
    return openvino.Model(model.get_results(), prepare.get_parameters(), model.friendly_name)


def _keep_precise(file: Path) -> None:
    """Keep the preprocessing in fp32 where the compiler is told to compute in less.

    OpenVINO reads this mark from a file, and has no call in Python that sets it.
    """
    tree = ElementTree.parse(file)
    for layer in tree.iter("layer"):
        if not layer.get("name", "").startswith(SCOPE):
            continue
        marks = layer.find("rt_info")
        if marks is None:
            marks = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, marks)
        ElementTree.SubElement(marks, "attribute", {"name": "precise", "version": "0"})
    write_bytes(file, ElementTree.tostring(tree.getroot(), xml_declaration=True))


def _quantize(model: Any, calibration: Calibration, batch: int, note: Note) -> tuple[Any, Accuracy]:
    """Quantize by NNCF: transformer preset, symmetric activations, classifiers in fp32."""
    try:
        # Its loggers write to what is standard output now, which is for results.
        with redirect_stdout(sys.stderr), silenced():
            import nncf
    except ImportError:
        raise RuntimeMissingError(
            "int8 in OpenVINO needs nncf, which is not installed.",
            "pip install 'spvit-deploy[openvino]'",
        ) from None
    heads = _classifiers(model)
    products = [n.get_friendly_name() for n in model.get_ops() if n.get_type_name() in _INT8]
    all_layers = [name for name in products if name not in heads]

    def quantize(layers: Sequence[str], images: Array) -> Any:
        parts = calibration_batches(images, batch)
        ignored = heads | (set(all_layers) - set(layers))
        with _quiet():
            return nncf.quantize(
                model,
                nncf.Dataset(parts, _counting(len(parts), note)),
                ignored_scope=nncf.IgnoredScope(names=sorted(ignored)),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(parts),
            )

    return quantize_with_control(
        all_layers,
        lambda layers, images: quantize(layers, images) if layers else model,
        lambda small: _runner(model if small is None else small),
        batch,
        calibration,
        note,
    )


def _classifiers(model: Any) -> set[str]:
    def kind(node: Any) -> str:
        name = str(node.get_type_name())
        vectors = name == "MatMul" and node.get_output_partial_shape(0).rank == 2
        return "Gemm" if vectors else name

    ends = (result.input_value(0).get_node() for result in model.get_results())
    found = find_classifiers(ends, lambda n: [v.get_node() for v in n.input_values()], kind)
    return {node.get_friendly_name() for node in found}


def _runner(model: Any) -> Runner:
    request = openvino_core().compile_model(model, "CPU", _FP32).create_infer_request()
    return lambda images: next(iter(request.infer({0: images}).values())).copy()


def _counting(total: int, note: Note) -> Callable[[Array], Array]:
    """Report how far a pass over the calibration batches is; NNCF makes several."""
    calls = itertools.count()

    def take(part: Array) -> Array:
        note(f"int8, calibration {next(calls) % total + 1} of {total}")
        return part

    return take


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence NNCF, which draws progress bars on standard output, where results go."""
    loud = ("nncf", "torch.utils.cpp_extension")  # the latter of a CUDA that it does not need
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), quiet(*loud):
        yield
