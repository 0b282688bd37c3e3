"""Records beside engines, what fits where, buffers, timing caches, layer types: no GPU needed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spvit_deploy.core.devices import Driver, Gpu, find_driver, parse_device, require_gpu
from spvit_deploy.core.errors import CorruptFileError, InputError, JobError, RuntimeMissingError
from spvit_deploy.core.files import sha256_bytes
from spvit_deploy.core.records import write_record
from spvit_deploy.runtimes.export_job import check_options
from spvit_deploy.runtimes.registry import find_format
from spvit_deploy.runtimes.tensorrt.cuda_buffers import bindings, image_size
from spvit_deploy.runtimes.tensorrt.engine_record import (
    Engine,
    EngineRecord,
    Place,
    choose,
    find_engines,
    misfits,
    sidecar,
    untouched,
)
from spvit_deploy.runtimes.tensorrt.layer_types import LayerTypes, built_types
from spvit_deploy.runtimes.tensorrt.logger import make_logger
from spvit_deploy.runtimes.tensorrt.timing_cache import TimingCache, check_file, update_file
from tests.helpers.calls import good, refused

RECORD: dict[str, Any] = {
    "library": "tensorrt", "library_version": "11.3.0.99", "compute_capability": "sm86",
    "precision": "fp16", "products": {"HALF": 1.0}, "batches": [1, 8, 32],
    "inputs": {"images": ["batch", 3, 16, 24]},
    "outputs": {"logits": ["batch", 10], "map": ["batch", 5, 4, 6]},
    "source_sha256": "0" * 64, "sha256": "0" * 64,
}  # fmt: skip
HERE = Place("tensorrt", "11.3.0.99", "sm86")


def record(**other: Any) -> EngineRecord:
    return EngineRecord.model_validate({**RECORD, **other})


def engine(folder: Path, name: str = "model.sm86.engine", **other: Any) -> Path:
    """A file that no library would load, with a record that is right about it."""
    blob = name.encode() * 50
    (folder / name).write_bytes(blob)
    made = record(sha256=sha256_bytes(blob), **other)
    write_record(sidecar(folder / name), made.model_dump(mode="json"))
    return folder / name


@pytest.mark.parametrize(
    ("other", "place", "wrong"),
    [
        ({}, HERE, []),
        ({}, Place("tensorrt", "11.4.0.106", "sm86"), ["11.3.0.99"]),
        ({}, Place("tensorrt", "11.3.0.99", "sm120"), ["sm120"]),
        ({}, Place("tensorrt", "11.4.0.106", "sm120"), ["11.3.0.99", "sm120"]),
        ({}, Place("tensorrt_rtx", "11.3.0.99", "sm86"), ["tensorrt_rtx"]),
        ({"version_compatible": True}, Place("tensorrt", "11.4.0.106", "sm86"), []),
        ({"version_compatible": True}, Place("tensorrt", "11.2.1.2", "sm86"), ["11.2.1.2"]),
        ({"version_compatible": True}, Place("tensorrt", "12.0.0.1", "sm86"), ["12.0.0.1"]),
        ({"hardware_compatible": True}, Place("tensorrt", "11.3.0.99", "sm120"), []),
        ({"hardware_compatible": True}, Place("tensorrt", "11.3.0.99", "sm75"), ["sm75"]),
    ],
)
def test_what_does_not_fit_is_named(other: dict[str, Any], place: Place, wrong: list[str]) -> None:
    found = misfits(record(**other), place)
    assert len(found) == len(wrong)
    for line, word in zip(found, wrong, strict=True):
        assert word in line


def test_the_engine_that_fits_is_chosen(tmp_path: Path) -> None:
    compatible = Engine(tmp_path / "a.engine", record(hardware_compatible=True))
    own = Engine(tmp_path / "b.engine", record(compute_capability="sm89"))
    assert choose([compatible, own], Place("tensorrt", "11.3.0.99", "sm89")) is own
    assert choose([own, compatible], HERE) is compatible
    assert choose([own, compatible], Place("tensorrt", "11.3.0.99", "sm120")) is compatible
    with pytest.raises(InputError, match=r"b.engine is for sm89 \(this GPU is sm75\).*tensorrt"):
        choose([own], Place("tensorrt", "11.3.0.99", "sm75"))
    with pytest.raises(InputError, match=r"b.engine was built by .* or install tensorrt==11.3"):
        choose([own], Place("tensorrt", "11.4.0.106", "sm89"))
    rtx = [Engine(tmp_path / f"{gpu}.engine", record(library="tensorrt_rtx",
           compute_capability=gpu)) for gpu in ("sm86", "sm120")]  # fmt: skip
    with pytest.raises(InputError, match=r"sm86.engine .*; sm120.engine .* --gpu sm90"):
        choose(rtx, Place("tensorrt_rtx", "11.3.0.99", "sm90"))
    assert untouched(rtx) == "the engines were built for sm86, sm120 and are untouched"


def test_damaged_and_foreign_engines_are_refused(tmp_path: Path) -> None:
    file = engine(tmp_path)
    assert find_engines(tmp_path) == find_engines(file)
    good("inspect", file)
    good("inspect", sidecar(file))
    whole = file.read_bytes()
    for damaged in (whole[:40], b"x" + whole[1:], b""):
        file.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="truncated or changed"):
            find_engines(file)
        refused("benchmark", file, "-o", tmp_path / "r.json", error="truncated or changed")
        refused("inspect", file, error="truncated or changed")
    file.write_bytes(whole)
    text = sidecar(file).read_text()
    sidecar(file).write_text(text.replace("sm86", "sm120"))
    refused("benchmark", file, "-o", tmp_path / "r.json", error="hash mismatch")
    unsigned = {key: value for key, value in json.loads(text).items() if key != "digest"}
    for change in ({"compute_capability": "here"}, {"batches": [1, 2]}, {"library": "other"}):
        sidecar(file).write_text(json.dumps({**unsigned, **change}))
        refused("inspect", file, error=next(iter(change)))
    sidecar(file).unlink()
    for command in (("benchmark", file, "-o", tmp_path / "r.json"), ("inspect", file)):
        refused(*command, error="no model.sm86.engine.json beside it")
    with pytest.raises(InputError, match="contains no engine"):
        find_engines(tmp_path / "nowhere")


@pytest.mark.skipif(find_driver() is not None, reason="a CUDA driver is here")
def test_without_a_driver_a_bare_engine_is_untouched(tmp_path: Path) -> None:
    error = "No CUDA driver found; the engine was built for sm86 and is untouched."
    refused("benchmark", engine(tmp_path), "-o", tmp_path / "r.json", code=1, error=error)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="no tensorrt-rtx here")
def test_an_engine_of_another_version_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver alone is made up: nothing is computed."""
    here = Driver("13.0", (Gpu(0, "GPU", "sm120"),))
    monkeypatch.setattr("spvit_deploy.core.devices.find_driver", lambda: here)
    file = engine(tmp_path, library="tensorrt_rtx", library_version="1.2.0.54")
    error = "was built by tensorrt_rtx 1.2.0.54 (here is tensorrt_rtx "
    refused("benchmark", file, "-o", tmp_path / "r.json", error=error)
    refused("benchmark", file, "-o", tmp_path / "r.json", error="is for sm86 (this GPU is sm120).")


def test_buffers_follow_the_record() -> None:
    parts = bindings(record(), 4)
    assert [(p.name, p.shape, p.is_input) for p in parts] == [
        ("images", (4, 3, 16, 24), True),
        ("logits", (4, 10), False),
        ("map", (4, 5, 4, 6), False),
    ]
    assert [p.nbytes for p in parts] == [4 * 4608, 160, 1920]
    assert image_size(record()) == (3, 16, 24)
    for batch, takes in ((0, "1 to 32"), (33, "1 to 32")):
        with pytest.raises(InputError, match=f"Batch {batch} .* takes {takes}"):
            bindings(record(), batch)
    with pytest.raises(InputError, match=r"the engine takes 4\."):
        bindings(record(batches=[4], inputs={"images": [4, 3, 8, 8]}), 2)


def test_devices_of_engines() -> None:
    names = ("auto", "cpu", "cuda", "cuda:3", "openvino:1")
    assert [parse_device(name)[1] for name in names] == [0, 0, 0, 3, 1]
    for name, error in (
        ("mps", "TensorRT runs on cuda"),
        ("cuda:x", "expected auto, cpu, cuda, cuda:N"),
        ("cpu:1", "expected auto, cpu, cuda, cuda:N"),
    ):
        with pytest.raises(RuntimeMissingError, match=error):
            require_gpu("an engine needs one", "", name)


def test_flags_of_other_formats_are_refused(dense_folder: Path, tmp_path: Path) -> None:
    options = {
        "timing_cache": ("--timing-cache", tmp_path / "cache"),
        "version_compatible": ("--version-compatible",),
        "hardware_compatible": ("--hardware-compatible",),
        "refittable": ("--refittable",),
    }
    for name, args in options.items():
        given = {name: args[1] if len(args) > 1 else True}
        check_options(find_format("tensorrt"), given)
        having = "tensorrt-rtx or tensorrt" if name == "refittable" else "tensorrt"
        refused("export", dense_folder, *args, "-o", tmp_path / "o",
                error=f"{args[0]} is for --format {having}; 'onnx' was requested")  # fmt: skip
        if name != "refittable":
            with pytest.raises(InputError, match=f"Format 'tensorrt-rtx' has no {args[0]}: "):
                check_options(find_format("tensorrt-rtx"), given)
    refused("export", dense_folder, "--format", "tensorrt", "--timing-cache", tmp_path,
            "-o", tmp_path / "o", error="a timing cache is a file")  # fmt: skip
    check_file(tmp_path / "new" / "cache")


def test_builds_at_once_lose_nothing_of_a_shared_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "cache"
    code = (
        "import sys; from pathlib import Path\n"
        "from spvit_deploy.runtimes.tensorrt.timing_cache import update_file\n"
        "for i in range(40):\n"
        "    update_file(Path(sys.argv[1]), lambda b: b + f'{sys.argv[2]} {i}\\n'.encode())\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in "abc"]
    assert [run.wait() for run in runs] == [0, 0, 0]
    lines = file.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {i}" for name in "abc" for i in range(40))
    assert {entry.name for entry in file.parent.iterdir()} == {"cache", "cache.lock"}


def test_a_failed_update_leaves_the_file_and_frees_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    update_file(file, lambda blob: blob + b"one")
    with pytest.raises(ZeroDivisionError):
        update_file(file, lambda blob: bytes(1 // len(blob[3:])))
    update_file(file, lambda blob: blob + b" two")
    assert file.read_bytes() == b"one two"


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="no tensorrt-rtx here")
@pytest.mark.filterwarnings("ignore:.*iming cache:DeprecationWarning")
def test_a_damaged_timing_cache_is_ignored_and_replaced(tmp_path: Path) -> None:
    """TensorRT for RTX has the objects of timing caches, though it puts nothing into them."""
    import tensorrt_rtx as trt

    file, warnings, logger = tmp_path / "cache", list[str](), make_logger(trt)
    config = trt.Builder(logger).create_builder_config()
    cache = TimingCache(file, logger, warnings.append)
    cache.attach(config)
    cache.save(config)
    assert warnings == []
    fresh = file.read_bytes()
    assert len(fresh) > 100
    file.write_bytes(b"rubbish" * 100)
    cache.attach(config)
    assert len(warnings) == 1
    assert "damaged or of another version of TensorRT" in warnings[0]
    cache.save(config)
    assert file.read_bytes() == fresh


ASKED = LayerTypes({"HALF": 1.0}, {"HALF": 0.6, "FLOAT": 0.4}, "network")


def layer(inputs: str, outputs: str, **other: Any) -> dict[str, Any]:
    return {"Name": "n", "LayerType": "gemm", "Inputs": [{"Name": "i", "Format/Datatype": inputs}],
            "Outputs": [{"Name": "o", "Format/Datatype": outputs}], **other}  # fmt: skip


def test_types_are_read_from_the_engine() -> None:
    layers = [
        layer("Half", "Half"),
        layer("Row major linear FP16 format", "Row major linear FP32"),
        layer("Float", "Float"),
        layer("Thirty-two wide channel vectorized row major Int8 format.", "Half"),
        layer("Int64", "Int64"),
    ]
    found = built_types(ASKED, json.dumps({"Layers": layers, "Bindings": ["images"]}), "fp16")
    assert found == LayerTypes({"HALF": 1.0}, {"HALF": 0.5, "FLOAT": 0.25, "INT8": 0.25}, "engine")
    weights = [layer("Float", "Float", Weights={"Type": "Half", "Count": 4})] * 5
    assert built_types(ASKED, json.dumps({"Layers": weights}), "fp16").layers_of == "engine"


def test_an_engine_of_another_precision_fails_the_build() -> None:
    layers = [layer("Float", "Float")] * 6
    with pytest.raises(JobError, match=r"fp16 was requested; the engine's layers are .*FLOAT"):
        built_types(ASKED, json.dumps({"Layers": layers}), "fp16")


@pytest.mark.parametrize(
    "information",
    ["", "not JSON", "[]", '{"Layers": ["name alone"]}', json.dumps({"Layers": [layer("Float",
     "Float")]})],
)  # fmt: skip
def test_what_the_engine_hides_is_that_of_the_network(information: str) -> None:
    assert built_types(ASKED, information, "fp16") is ASKED
