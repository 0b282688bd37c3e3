"""Repositories for Triton: what is written, added and refused. No server runs here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spvit_deploy.core.errors import InputError
from spvit_deploy.export.record import ExportRecord, TensorInfo, load_export
from spvit_deploy.serving.config import (
    BACKENDS,
    Serving,
    check_model_name,
    config_text,
    default_model_name,
    list_versions,
    make_config,
    new_serving,
    read_config,
    read_models,
    read_serving,
)
from spvit_deploy.serving.repository import export_triton
from tests.helpers.calls import good, refused
from tests.helpers.triton_server import NAME, contents, free_ports, save_dense

TRITON = ("--format", "triton", "--model-name", NAME)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense") / "one", seed=0)


@pytest.fixture(scope="module")
def written(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportRecord:
    repository = tmp_path_factory.mktemp("record") / "repo"
    return export_triton(str(dense), repository, name=NAME).record


@pytest.fixture(scope="module")
def first_version(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("first") / "repo"
    good("export", dense, *TRITON, "--backend", "python", "-o", repository)
    return repository


@pytest.fixture
def repository(first_version: Path, tmp_path: Path) -> Path:
    """With one version of one model, for the Python backend."""
    return shutil.copytree(first_version, tmp_path / "repo")


@pytest.mark.parametrize(
    ("backend", "files", "kind"),
    [
        ("onnxruntime", {"model.onnx"}, 0),
        ("openvino", {"model.xml", "model.bin"}, 2),
        ("python", {"model.onnx", "model.py", "__pycache__"}, 2),
    ],
)
def test_each_backend_finds_its_files_and_its_configuration(
    dense: Path, tmp_path: Path, backend: str, files: set[str], kind: int
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    done = good("export", dense, *TRITON, "--backend", backend, "--max-batch", 4, "--queue-delay",
                700, "--instances", 2, "--live-versions", 3, "-o", tmp_path / "repo")  # fmt: skip
    assert f"model {NAME}, version 1: backend {backend}, batches up to 4" in done.stdout
    folder = tmp_path / "repo" / NAME
    assert {file.name for file in folder.iterdir()} == {"config.pbtxt", "labels.txt", "1"}
    assert {file.name for file in (folder / "1").iterdir()} == {*files, "export.json"}
    assert (folder / "labels.txt").read_text().splitlines() == [f"digit {i}" for i in range(10)]
    config = read_models(tmp_path / "repo")[NAME]
    assert read_serving(config) == Serving(
        backend=backend, max_batch=4, queue_delay=700, instances=2, live_versions=3
    )
    assert (config.name, config.backend, config.instance_group[0].kind) == (NAME, backend, kind)
    (images,), (logits,) = config.input, config.output
    assert (images.name, images.data_type, list(images.dims)) == ("images", 11, [1, 16, 16])
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", 11, [10])
    assert logits.label_filename == "labels.txt"
    warm = [(one.batch_size, list(one.inputs["images"].dims)) for one in config.model_warmup]
    assert warm == [(1, [1, 16, 16]), (4, [1, 16, 16])]
    facts = json.loads(good("inspect", folder / "1", "--json").stdout)
    assert (facts["kind"], facts["format"]) == ("exported", BACKENDS[backend])


def test_tensorrt_engines_are_named_and_their_batches_kept(written: ExportRecord) -> None:
    """Engines are built where the GPU is; their configuration is made of the record alone."""
    files = {"model.onnx": "", "model.sm86.engine": "", "model.sm86.engine.json": ""}
    record = written.model_copy(update={"format": "tensorrt", "files": files})
    config = make_config(record, NAME, Serving(backend="tensorrt", max_batch=16))
    assert config.default_model_filename == "model.sm86.engine"
    assert config.instance_group[0].kind == 1  # KIND_GPU
    options = Serving(backend="tensorrt", max_batch=33)
    with pytest.raises(InputError, match=r"of 33 exceed the engine's largest, 32\. Give --prof"):
        new_serving(options, None, (1, 8, 32))
    assert new_serving(options, None, (1, 8, 64)).max_batch == 33
    with pytest.raises(InputError, match=r"'python' does not open format 'tensorrt'.*tensorrt\."):
        make_config(record, NAME, Serving(backend="python"))


sizes = st.integers(1, 4096)
tensors = st.builds(
    TensorInfo,
    name=st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    shape=st.tuples(st.none(), sizes, st.none() | sizes, sizes),
    dtype=st.sampled_from(["float32", "float16", "uint8"]),
)
servings = st.builds(
    Serving,
    backend=st.sampled_from(["onnxruntime", "python"]),
    max_batch=st.integers(1, 4096),
    queue_delay=st.integers(0, 10**7),
    instances=st.integers(1, 64),
    live_versions=st.integers(1, 9),
)


@given(
    inputs=st.lists(tensors, min_size=1, max_size=3, unique_by=lambda one: one.name),
    outputs=st.lists(tensors, min_size=1, max_size=3, unique_by=lambda one: one.name),
    serving=servings,
)
def test_what_is_written_is_read_by_tritons_protobuf_as_it_was(
    written: ExportRecord,
    tmp_path_factory: pytest.TempPathFactory,
    inputs: list[TensorInfo],
    outputs: list[TensorInfo],
    serving: Serving,
) -> None:
    update = {"inputs": tuple(inputs), "outputs": tuple(outputs)}
    config = make_config(written.model_copy(update=update), NAME, serving)
    file = tmp_path_factory.mktemp("config") / "config.pbtxt"
    file.write_text(config_text(config))
    assert read_config(file) == config
    assert read_serving(config) == serving
    for given_, made in zip((*inputs, *outputs), (*config.input, *config.output), strict=True):
        assert list(made.dims) == [-1 if size is None else size for size in given_.shape[1:]]


def test_versions_are_added_beside_each_other(
    repository: Path, dense: Path, tmp_path: Path
) -> None:
    folder = repository / NAME
    config = (folder / "config.pbtxt").read_text() + "# A line of the user's.\n"
    (folder / "config.pbtxt").write_text(config)
    before = contents(repository)
    again = ("export", dense, *TRITON, "-o", repository)
    refused(*again, error="with versions 1. Add one with --model-version next")
    refused(*again, "--model-version", 1, error="digits/1 exists. Add a version with")
    assert contents(repository) == before
    good(*again, "--model-version", "next")
    good(*again, "--model-version", 7)
    assert list_versions(folder) == [1, 2, 7]
    after = contents(repository)
    assert {name: after[name] for name in before} == before
    assert load_export(folder / "7").parent == load_export(folder / "1").parent
    assert (folder / "7" / "model.py").is_file()
    other = save_dense(tmp_path / "other", seed=1)
    good("export", other, *TRITON, "-o", repository, "--model-version", 7, "--force")
    assert load_export(folder / "7").parent != load_export(folder / "1").parent
    assert {name: contents(repository)[name] for name in before} == before
    good("export", other, "--format", "triton", "--model-name", "second", "-o", repository)
    assert set(read_models(repository)) == {NAME, "second"}
    assert {path.name for path in tmp_path.iterdir()} == {"repo", "other"}


def test_a_mounted_repository_takes_models_and_versions(dense: Path, tmp_path: Path) -> None:
    """Nothing can be renamed into it from beside it."""
    repository = tmp_path / "mounted"
    repository.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", repository], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        good("export", dense, *TRITON, "-o", repository)
        good("export", dense, *TRITON, "-o", repository, "--model-version", "next")
        assert [path.name for path in repository.iterdir()] == [NAME]
        assert list_versions(repository / NAME) == [1, 2]
    finally:
        subprocess.run(["umount", repository], check=True)


def test_what_is_no_version_of_the_model_is_refused(
    repository: Path, dense: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    again = ("export", dense, *TRITON, "-o", repository, "--model-version", "next")
    refused(*again, "--max-batch", 16, error="config.pbtxt has 8. Omit --max-batch")
    refused(*again, "--backend", "onnxruntime", error="config.pbtxt has python. Omit --backend")
    refused(*again, "--batch", 3, error="cannot batch requests for a model of the fixed batch 3")
    refused(*again, "--output", "features", error="its outputs are features_0")
    (repository / NAME / "labels.txt").write_text("cat\ndog\n")
    refused(*again, error="its classes are not those of")
    (repository / NAME / "labels.txt").write_bytes(before[f"repo/{NAME}/labels.txt"])
    fewer = save_dense(tmp_path / "fewer", seed=0, classes=4)
    refused("export", fewer, *again[2:], error="its outputs are logits [4], not logits [10]")
    (repository / NAME / "config.pbtxt").write_text('name: "digits" backend: "pytorch"')
    refused(*again, error="has the backend 'pytorch', which is not one of onnxruntime,")
    (repository / NAME / "config.pbtxt").write_text("input { nonsense: 1 }")
    refused(*again, error="is not a valid Triton configuration: 1:9")


def test_failed_parity_leaves_the_repository_whole(
    repository: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer that changes a weight must be caught."""
    from spvit_deploy.export import export_model

    real, before = export_model.optimize, contents(tmp_path)

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = real(proto)
        tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.5)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return proto

    monkeypatch.setattr(export_model, "optimize", wrong)
    added = ("export", dense, *TRITON, "--model-version", "next", "-o")
    refused(*added, repository, code=1, error="DIFFERENT")
    refused(*added, tmp_path / "new", code=1, error="DIFFERENT")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "ä", "a:1", "x" * 129])
def test_names_that_triton_does_not_take(name: str, dense: Path, tmp_path: Path) -> None:
    refused("export", dense, "--format", "triton", "--model-name", name, "-o", tmp_path / "repo",
            error="cannot be a model's name in Triton")  # fmt: skip
    assert not (tmp_path / "repo").exists()


@given(st.text(max_size=300))
def test_every_model_has_a_name_in_triton(model: str) -> None:
    assert check_model_name(default_model_name(model))
    assert default_model_name("hf-hub:timm/vit_small.augreg") == "vit_small.augreg"


def test_wrong_calls(dense: Path, tmp_path: Path, repository: Path) -> None:
    out = ("-o", tmp_path / "out")
    refused("export", dense, "--max-batch", 4, *out, error="--max-batch is for --format triton.")
    refused("export", dense, "--all", "--model-version", 2, *out, error="--model-version is for")
    for version in ("0", "01", "-1", "latest", str(2**63)):
        refused("export", dense, *TRITON, "--model-version", version, *out, error="from 1 on, or")
    refused(
        "export", dense, *TRITON, "--batch", 2, "--max-batch", 4, *out, error="the fixed batch 2"
    )
    refused(
        "export", dense, *TRITON, "-o", repository / NAME, error=f"Choose {repository} instead."
    )
    refused("export", dense, *TRITON, "-o", dense, error="is not a Triton repository")
    (tmp_path / "other" / "folder").mkdir(parents=True)
    refused("export", dense, *TRITON, "-o", tmp_path / "other", error="folder has no config.pbtxt")
    (tmp_path / "file").touch()
    refused("export", dense, *TRITON, "-o", tmp_path / "file", error="is a file")


def test_a_fixed_batch_is_a_size_like_others(dense: Path, tmp_path: Path) -> None:
    good("export", dense, *TRITON, "--batch", 3, "-o", tmp_path / "repo")
    config = read_models(tmp_path / "repo")[NAME]
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [3, 1, 16, 16]
    assert not config.HasField("dynamic_batching")
    again = ("export", dense, *TRITON, "-o", tmp_path / "repo", "--model-version", "next")
    refused(*again, error="The other versions have a fixed batch.")
    refused(*again, "--batch", 4, error="its inputs are images [4, 1, 16, 16], not images [3, 1")
    good(*again, "--batch", 3)


def test_a_missing_extra_is_named(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("tritonclient")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    error = "which is not installed. pip install 'spvit-deploy[triton]'"
    refused("export", dense, *TRITON, "-o", tmp_path / "repo", error=error)
    refused("load", "grpc://127.0.0.1:1", "--model", NAME, error=error)
    assert not (tmp_path / "repo").exists()


def test_servers_that_are_not_here(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(
        "serve", repository, error=f"docker run --rm -p 8000:8000 -p 8001:8001 -v {repository}:"
    )
    missing = "repo: not a Python environment with nvidia-pytriton."
    refused("serve", repository, "--server", tmp_path / "repo", error=missing)
    refused(
        "serve", repository, "--server", repository / NAME / "labels.txt", error="not a program"
    )
    http, grpc = free_ports(2)
    ports = ("--http-port", http, "--grpc-port", grpc)
    refused(
        "serve",
        tmp_path / "nowhere",
        *ports,
        "--server",
        "/bin/false",
        error="no models there",
    )
    refused(
        "serve", repository, "--server", "/bin/false", "--http-port", 8001, error="are the same"
    )
    refused("serve", repository, *ports, "--server", "/bin/false", code=1,
            error="Triton ended during its start: its log is empty")  # fmt: skip
    refused("load", f"grpc://127.0.0.1:{grpc}", "--model", NAME, error="No Triton server responds")
    refused("load", f"http://127.0.0.1:{http}", "--model", NAME, error="No Triton server responds")
    refused("load", "127.0.0.1", "--model", NAME, error="not an address")
    refused(
        "load",
        "grpc://x",
        "--model",
        NAME,
        "--slo",
        "fast",
        error="expected a time such as 250us, 4ms",
    )
