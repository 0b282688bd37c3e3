"""OpenVINO's own files: ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import JobError, RuntimeMissingError, first_line
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.log_filters import quiet, silenced
from spvit_deploy.data.accuracy import top1_accuracy
from spvit_deploy.runtimes.batching import in_batches
from spvit_deploy.runtimes.calibration import Accuracy, Calibration
from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, MODEL_FILE, write
from spvit_deploy.runtimes.onnx.preprocessing_graph import SCOPE, picture_graph
from spvit_deploy.runtimes.openvino.core import openvino_core

# Where the session reads which precision the compiler is to be told.
PRECISION_INFO = ["spvit_deploy", "precision"]
_XML = "model.xml"
_FP32 = {"INFERENCE_PRECISION_HINT": "f32"}


def export_openvino(job: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Convert the ONNX graph; weights keep their precision.

    Raises:
        JobError: OpenVINO cannot convert it.
        RuntimeMissingError: int8 without NNCF.
    """
    accuracy = None
    with tempfile.TemporaryDirectory() as scratch:
        write(job.proto, Path(scratch))
        try:
            model = openvino.convert_model(Path(scratch) / MODEL_FILE)
        except RuntimeError as error:
            raise JobError(
                f"OpenVINO cannot convert the graph: {first_line(error)}.", "Please report it."
            ) from error
        if job.calibration is not None:
            model, accuracy = _quantize(model, job.calibration, job.batch or 1, note)
        if job.preprocessing is not None:
            model = _behind_pictures(model, job)
        model.set_rt_info(job.precision, PRECISION_INFO)
        for key, value in job.metadata.items():
            model.set_rt_info(value, key.split(".", 1))
        openvino.save_model(model, folder / _XML, compress_to_fp16=False)
        if job.preprocessing is not None:
            _keep_precise(folder / _XML)
    return WrittenFiles((_XML, "model.bin"), accuracy)


def _behind_pictures(model: Any, job: ExportJob) -> Any:
    """The model behind its preprocessing: uint8 [B, H, W, C] in, of any height and width."""
    assert job.preprocessing is not None
    opset = next(o.version for o in job.proto.opset_import if o.domain in ("", "ai.onnx"))
    front = picture_graph(job.preprocessing, job.batch, opset, INPUT_NAME)
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


def _quantize(
    model: Any, calibration: Calibration, batch: int, note: Callable[[str], None]
) -> tuple[Any, Accuracy]:
    """NNCF's post-training quantization, with its accuracy control where a drop is not allowed.

    Transformer preset, symmetric activations, classifiers in fp32.
    """
    try:
        # Its loggers write to what is standard output now, which is for results.
        with redirect_stdout(sys.stderr), silenced():
            import nncf
    except ImportError:
        raise RuntimeMissingError(
            "int8 in OpenVINO needs nncf, which is not installed.",
            "pip install 'spvit-deploy[openvino]'",
        ) from None
    whole = len(calibration.images) // batch * batch
    parts = np.split(calibration.images[:whole], max(1, whole // batch))
    heads = _classifiers(model)
    settings = {
        "ignored_scope": nncf.IgnoredScope(names=sorted(heads)),
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": len(parts),
    }
    note("int8, accuracy before it")
    before = _top1(calibration, _runner(model, batch))
    fitted = nncf.Dataset(parts, _counting(len(parts), note))
    with _quiet():
        small = nncf.quantize(model, fitted, **settings)
        note("int8, accuracy after it")
        after = _top1(calibration, _runner(small, batch))
        limit = calibration.max_drop
        if limit is None or before - after <= limit:
            return small, Accuracy(before, after)
        small = nncf.quantize_with_accuracy_control(
            model,
            fitted,
            nncf.Dataset(list(calibration.labelled())),
            lambda compiled, pairs: (_share(compiled, pairs, batch), None),
            max_drop=limit / 100,
            **settings,
        )
    after = _top1(calibration, _runner(small, batch))
    left = tuple(name for name in _left_out(small) if name not in heads)
    return small, Accuracy(before, after, left)


def _classifiers(model: Any) -> set[str]:
    """Products of a vector an image with nothing but arithmetic between them and an output.

    One token's product costs no time, and in int8 the most accuracy of all layers.
    """
    found, todo = set(), [result.input_value(0).get_node() for result in model.get_results()]
    while todo:
        node = todo.pop()
        if node.get_type_name() == "MatMul" and node.get_output_partial_shape(0).rank == 2:
            found.add(node.get_friendly_name())
        elif node.get_type_name() in ("Add", "Multiply", "Divide"):
            todo.extend(value.get_node() for value in node.input_values())
    return found


def _left_out(small: Any) -> tuple[str, ...]:
    """Products with weights that have no FakeQuantize before them."""
    kept = []
    for node in small.get_ordered_ops():
        if node.get_type_name() not in ("MatMul", "Convolution"):
            continue
        sources = [node.input_value(index).get_node().get_type_name() for index in (0, 1)]
        constant = any(name in ("Constant", "Convert", "Multiply") for name in sources)
        if constant and "FakeQuantize" not in sources:
            kept.append(node.get_friendly_name())
    return tuple(kept)


def _runner(model: Any, batch: int) -> Callable[[Array], Array]:
    request = openvino_core().compile_model(model, "CPU", _FP32).create_infer_request()
    return lambda images: _in_parts(request, images, batch)


def _in_parts(request: Any, images: Array, batch: int) -> Array:
    def run(part: Array) -> Array:
        answer: Array = next(iter(request.infer({0: part}).values())).copy()
        return answer

    return in_batches(run, images, batch, batch)


def _top1(calibration: Calibration, run: Callable[[Array], Array]) -> float:
    return calibration.top1(lambda images: [run(images)])


def _share(compiled: Any, pairs: Iterable[tuple[Array, Array]], batch: int) -> float:
    request = compiled.create_infer_request()
    scored = ((_in_parts(request, images, batch), labels) for images, labels in pairs)
    return top1_accuracy(scored) / 100


def _counting(total: int, note: Callable[[str], None]) -> Callable[[Array], Array]:
    """Says how far a pass over the calibration batches is; NNCF makes several."""
    calls = itertools.count()

    def take(part: Array) -> Array:
        note(f"int8, calibration {next(calls) % total + 1} of {total}")
        return part

    return take


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws bars of its own, on standard output, which is for results."""
    loud = ("nncf", "torch.utils.cpp_extension")  # the latter of a CUDA that it does not need
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), quiet(*loud):
        yield
