"""Files of torch.export and ExecuTorch, and torch.compile."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spvit_deploy.core.errors import InputError
from spvit_deploy.lean.model_folder import SavedModel, load_saved
from spvit_deploy.runtimes.registry import open_session, runtimes_for
from tests.helpers.calls import good, refused

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="no executorch here"
)
FORMATS = ["torch", pytest.param("executorch", marks=needs_executorch)]
FILES = {"torch": "model.pt2", "executorch": "model.pte"}
BARE = """
import sys, numpy, torch
extra = {"spvit_deploy.json": ""}
module = torch.export.load(sys.argv[1], extra_files=extra).module()
images = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], torch.cat([module(part) for part in images.split([1, 2, 5])]).numpy())
assert "preprocessing" in extra["spvit_deploy.json"]
assert not {"spvit_deploy", "timm"} & set(sys.modules), "imported"
"""


@pytest.fixture
def lean(make_lean: Callable[..., tuple[SavedModel, Path]]) -> Path:
    return make_lean(["conv3x3", "msa", "conv1x1"], [40, 96, 8])[1]


def sample(batch: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 1, 16, 16), dtype=np.float32)


def answers(folder: Path, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        scores: np.ndarray = load_saved(folder).module(torch.from_numpy(images)).numpy()
    return scores


def test_a_program_needs_only_torch(lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", "torch", "-o", tmp_path / "out")
    images = sample(8)
    np.save(tmp_path / "images.npy", images)
    given = [tmp_path / "out" / "model.pt2", tmp_path / "images.npy", tmp_path / "scores.npy"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", BARE, *map(str, given)], cwd=tmp_path, env=environment, check=True
    )
    np.testing.assert_allclose(np.load(given[2]), answers(lean, images), atol=1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_twice_the_same_export_gives_the_same_bytes(form: str, lean: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        good("export", lean, "--format", form, "--batch", 2, "-o", folder)
    content = [(folder / FILES[form]).read_bytes() for folder in (first, second)]
    assert content[0] == content[1]
    assert str(Path.cwd()).encode() not in content[0]
    session = open_session(first, form)
    assert session.input.batch == 2
    with pytest.raises(InputError, match="the model takes"):
        session.run(sample(1))


def test_an_onnx_graph_is_not_traced_for_it(
    lean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spvit_deploy.runtimes.onnx.graph.trace", None)
    good("export", lean, "--format", "torch", "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["opset"] is None
    refused("export", lean, "--format", "torch", "--opset", 18, "-o", tmp_path / "o",
            error="no ONNX operator set")  # fmt: skip


def test_bf16_is_computed_in_bf16(lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", "torch", "--precision", "bf16", "-o", tmp_path / "low")
    program = torch.export.load(tmp_path / "low" / "model.pt2")
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.bfloat16}
    low, full = open_session(tmp_path / "low", "torch").run(sample(4)), answers(lean, sample(4))
    assert low.dtype == np.float32
    assert 1e-4 < np.abs(low - full).max() / np.abs(full).max() < 0.05


@pytest.mark.parametrize("form", FORMATS)
def test_several_outputs_and_bare_files(form: str, lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", form, "--output", "all", "-o", tmp_path / "out")
    bare = tmp_path / "out" / FILES[form]
    session = open_session(bare, form)
    assert session.outputs[0] == "logits"
    assert session.outputs == open_session(tmp_path / "out", form).outputs
    assert [answer.ndim for answer in session.run_all(sample(3))] == [2, 4, 4, 4]
    for path in (bare, bare.parent):
        facts = json.loads(good("inspect", path, "--json").stdout)
        assert form in (facts["kind"], facts.get("format"))
    found = json.loads(good("evaluate", bare, "--data", "digits", "--json").stdout)
    assert found["runtime"] == form


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_refused(form: str, lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", form, "--batch", 1, "-o", tmp_path / "out")
    file = tmp_path / "out" / FILES[form]
    whole = file.read_bytes()
    middle = len(whole) // 2
    for content in (whole[:middle], whole[:-1], b"", b"text"):
        file.write_bytes(content)
        refused("evaluate", file.parent, "--data", "digits", error="hash mismatch")
        refused("inspect", file.parent, error="hash mismatch")
        refused("inspect", file, error=str(file))
        refused("benchmark", file, "-o", tmp_path / "r.json", error=str(file))
    file.unlink()
    refused("evaluate", file.parent, "--data", "digits", error="missing")


def test_changed_weights_are_refused(lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", "torch", "-o", tmp_path / "out")
    file = tmp_path / "out" / "model.pt2"
    content = bytearray(file.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    refused("benchmark", file, "-o", tmp_path / "r.json", error="is damaged")
    refused("benchmark", file.parent, "-o", tmp_path / "r.json", error="hash mismatch")


class Touch:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("trick", ["pickle", "weights", "shape", "operator", "guard", "name"])
def test_a_file_that_would_run_code_is_refused(trick: str, lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", "torch", "-o", tmp_path / "out")
    bad, mark = tmp_path / "bad.pt2", tmp_path / "ran"

    def change(name: str, content: bytes) -> bytes:
        code = f"open({str(mark)!r}, 'w')"
        text = content.decode(errors="replace")
        if trick == "pickle" and name.endswith("sample_inputs/model.pt"):
            stream = io.BytesIO()
            torch.save(((Touch(mark),), {}), stream, pickle_module=pickle)
            return stream.getvalue()
        if trick == "weights" and name.endswith("weights_config.json"):
            return text.replace('"use_pickle": false', '"use_pickle": true').encode()
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(text)
        graph = program["graph_module"]["graph"]
        if trick == "shape":
            program["range_constraints"] = {code: {"min_val": 1, "max_val": 9}}
        elif trick == "operator":
            graph["nodes"][0]["target"] = "torch.hub.load"
        elif trick == "guard":
            program["guards_code"] = [code]
        elif trick == "name":
            graph["nodes"][0]["name"] = f"x = {code}"
        return json.dumps(program).encode()

    with zipfile.ZipFile(tmp_path / "out" / "model.pt2") as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    refused("benchmark", bad, "-o", tmp_path / "r.json", error="could run code")
    assert not mark.exists()


def test_precisions_that_they_lack(lean: Path, tmp_path: Path) -> None:
    refused("export", lean, "--format", "torch", "--precision", "fp16", "-o", tmp_path / "o",
            error="'torch' is written in fp32, bf16")  # fmt: skip
    refused("export", lean, "--format", "executorch", "--precision", "bf16", "-o", tmp_path / "o",
            error="'executorch' is written in fp32")  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_a_missing_extra_is_named(
    lean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "executorch" else there(name)
    )
    line = "pip install 'spvit-deploy[executorch]'"
    refused("export", lean, "--format", "executorch", "-o", tmp_path / "o", error=line)
    (tmp_path / "model.pte").write_bytes(b"any")
    refused("inspect", tmp_path / "model.pte", error=line)
    refused("benchmark", lean, "--runtime", "executorch", "-o", tmp_path / "r.json", error=line)


@pytest.mark.slow
def test_compiling_is_only_for_those_who_ask(lean: Path, tmp_path: Path) -> None:
    assert runtimes_for(lean) == ["torch"]
    assert runtimes_for(lean, ["torch-compile"]) == ["torch", "torch-compile"]
    good("export", lean, "--format", "torch", "-o", tmp_path / "out")
    good("benchmark", lean, tmp_path / "out", "--runtime", "torch-compile", "--duration", 0.05,
         "-o", tmp_path / "r.json")  # fmt: skip
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [row["runtime"] for row in rows] == ["torch-compile"] * 2
    assert max(rows[0]["samples"]) < 1


def test_compiling_without_a_compiler(
    lean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    refused("benchmark", lean, "--runtime", "torch-compile", "-o", tmp_path / "r.json",
            error="needs a C++ compiler")  # fmt: skip


@needs_executorch
def test_more_images_than_memory_was_planned_for(lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--format", "executorch", "--profile", "1,2,4", "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert 0.3 < record["delegated"] < 1
    session = open_session(tmp_path / "out", "executorch")
    np.testing.assert_allclose(session.run(sample(9)), answers(lean, sample(9)), atol=1e-4)
    refused("benchmark", tmp_path / "out", "--batch", 5, "-o", tmp_path / "r.json",
            error="for 4 at most")  # fmt: skip
    refused("benchmark", tmp_path / "out", "--device", "cuda", "-o", tmp_path / "r.json",
            error="computes on cpu")  # fmt: skip


class Theirs(torch.nn.Module):
    """Ten scores of images, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, 10)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.head(images.mean((2, 3)))}


class Pair(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first + second


def program_of(module: torch.nn.Module, *inputs: torch.Tensor, **dims: Any) -> Any:
    program = torch.export.export(module.eval(), inputs, strict=False, **dims)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def test_programs_of_others(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 16, 16)
    batch = torch.export.Dim("batch", min=1, max=8)
    file, results = tmp_path / "theirs.pt2", tmp_path / "r.json"
    torch.export.save(program_of(Theirs(), images, dynamic_shapes=({0: batch},)), file)
    found = json.loads(good("evaluate", file, "--data", "digits", "--json").stdout)
    assert found["images"] == 355
    good("benchmark", file, "--batch", 8, "--duration", 0.05, "-o", results)
    refused("benchmark", file, "--batch", 9, "-o", tmp_path / "o", error="takes batches of 1 to 8;")
    half = program_of(Theirs().half(), images.half())
    height = program_of(Theirs(), images, dynamic_shapes=({2: torch.export.Dim("h", min=8)},))
    pair, flat = program_of(Pair(), images, images), program_of(torch.nn.ReLU(), images[0, 0])
    for program, error in (
        (half, "takes float16 [2, 1, 16, 16]. What is measured takes float32 images"),
        (height, "of one size"), (flat, "takes float32 [16, 16]."),
        (pair, "takes float32 [2, 1, 16, 16]; float32 [2, 1, 16, 16]."),
    ):  # fmt: skip
        torch.export.save(program, file)
        refused("benchmark", file, "-o", tmp_path / "o", error=error)


@needs_executorch
def test_executorch_programs_of_others(tmp_path: Path) -> None:
    from executorch.exir import to_edge

    images = torch.zeros(2, 1, 16, 16)
    for module, inputs, error in (
        (Pair(), (images, images), "takes [2, 1, 16, 16]; [2, 1, 16, 16]."),
        (torch.nn.ReLU(), (images.half(),), "What is measured takes float32 images"),
    ):
        file = tmp_path / "theirs.pte"
        file.write_bytes(to_edge(program_of(module, *inputs)).to_executorch().buffer)
        refused("benchmark", file, "-o", tmp_path / "o", error=error)
