"""Triton's server itself, on repositories of ours: it runs here, on the CPU."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from spvit_deploy.core.arrays import Array
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.serving.client import RefusedError, TritonClient
from spvit_deploy.serving.config import Serving
from spvit_deploy.serving.load_test import LoadReport, random_images, run_load
from spvit_deploy.serving.repository import export_triton
from spvit_deploy.serving.server import RunningServer, ServerSettings, find_server, run_server
from tests.helpers.calls import call, good, refused
from tests.helpers.triton_server import NAME, SERVER, free_ports, needs_server, save_dense

pytestmark = needs_server
# The program, ended by SIGINT also where this process ignores it, as jobs in the background do.
INTERRUPTIBLE = """
import signal
from spvit_deploy.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
# The largest difference between the server's logits and PyTorch's.
CLOSE = 1e-4


def settings(poll: int = 0) -> ServerSettings:
    http, grpc = free_ports(2)
    return ServerSettings(http=http, grpc=grpc, poll=poll)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two with different outputs."""
    root = tmp_path_factory.mktemp("models")
    return [save_dense(root / str(seed), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def repository(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "repo"
    good("export", models[0], "--format", "triton", "--backend", "python", "--model-name", NAME,
         "--max-batch", 8, "--queue-delay", 20000, "-o", folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    """A server that loads what clients request."""
    with run_server(repository, find_server(str(SERVER), repository), settings()) as running:
        assert running.wait_ready(60) == {NAME: [1]}
        yield running


@pytest.fixture
def fresh(repository: Path, tmp_path: Path) -> Iterator[tuple[RunningServer, Path]]:
    """Another for a single test, and its repository."""
    folder = tmp_path / "repo"
    shutil.copytree(repository, folder)
    with run_server(folder, find_server(str(SERVER), folder), settings()) as running:
        running.wait_ready(60)
        yield running, folder


def images(count: int, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).normal(size=(count, 1, 16, 16))
    return drawn.astype(np.float32)


def load_until(client: TritonClient, version: str) -> LoadReport:
    """The sum of load tests, one after another, until a version responds; none of them may fail."""
    total, until = LoadReport(), time.monotonic() + 120
    while version not in total.versions and time.monotonic() < until:
        report = run_load(client, random_images(client, 0), rate=100, duration=2)
        report.require()
        assert report.sent == report.planned == report.answered
        total.sent += report.sent
        total.versions += report.versions
    return total


def load_model(server: RunningServer) -> None:
    """Request the new versions, as clients do where the server does not poll."""
    http = importlib.import_module("tritonclient.http")
    with http.InferenceServerClient(server.http.partition("://")[2]) as client:
        client.load_model(NAME)


def logits(model: Path, given: Array) -> Array:
    with torch.inference_mode():
        answer: Array = load_saved(model).module.eval()(torch.from_numpy(given)).numpy()
    return answer


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_server_matches_the_model(
    server: RunningServer, models: list[Path], scheme: str
) -> None:
    with TritonClient(getattr(server, scheme), NAME) as client:
        assert client.is_live()
        assert (client.input_name, client.input_type) == ("images", "FP32")
        assert client.input_shape == (-1, 1, 16, 16)
        for count in (1, 3, 8):
            given = images(count, seed=count)
            answer = client.infer(given)
            assert answer.version == "1"
            np.testing.assert_allclose(answer.logits, logits(models[0], given), atol=CLOSE)
        with pytest.raises(RefusedError, match="batch"):
            client.infer(images(9))
        with pytest.raises(RefusedError, match="shape"):
            client.infer(images(1)[..., :8])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_responses_carry_our_labels(server: RunningServer, scheme: str) -> None:
    client = importlib.import_module(f"tritonclient.{scheme}")
    given = client.InferInput("images", [1, 1, 16, 16], "FP32")
    given.set_data_from_numpy(images(1))
    asked = client.InferRequestedOutput("logits", class_count=2)
    url = getattr(server, scheme).partition("://")[2]
    with client.InferenceServerClient(url) as connection:
        found = connection.infer(NAME, [given], outputs=[asked]).as_numpy("logits")
    for row in found.reshape(-1):
        _, index, label = row.decode().split(":")
        assert label == f"digit {index}"


def test_requests_are_batched_and_each_gets_its_own_response(
    server: RunningServer, models: list[Path]
) -> None:
    given = [images(1, seed) for seed in range(64)]
    with TritonClient(server.grpc, NAME) as client:
        before = client.statistics()
        futures = [client.infer_async(one) for one in given]
        wait(futures)
        after = client.statistics()
        with TritonClient(server.http, NAME) as other:
            assert other.statistics() == after
    for one, future in zip(given, futures, strict=True):
        np.testing.assert_allclose(future.result().logits, logits(models[0], one), atol=CLOSE)
    assert after.inferences - before.inferences == 64
    calls = after.executions - before.executions
    assert 8 <= calls < 32, calls
    assert after.failed == before.failed


@pytest.mark.slow
def test_a_load_test_keeps_its_times_and_reports(server: RunningServer) -> None:
    for url in (server.grpc, server.http):
        printed = good("load", url, "--model", NAME, "--rate", 50, "--duration", 2, "--slo", "5s")
        sent = 100
        assert f"sent {sent}, answered {sent}, refused 0, lost 0\np50 " in printed.stdout
        assert printed.stdout.endswith("99% are answered within 5000 ms\n")
    late = ("load", server.grpc, "--model", NAME, "--duration", 1, "--slo", "1us")
    refused(*late, code=1, error="above --slo 0.001ms")
    refused("load", server.grpc, "--model", "other", error="'other' is not found")
    refused("load", server.grpc, "--model", NAME, "--version", 9, error="Check --model")


@pytest.mark.slow
def test_the_highest_rate_that_holds_a_limit_is_found(server: RunningServer) -> None:
    asked = ("load", server.grpc, "--model", NAME, "--find-rate", "--rate", 100)
    found = json.loads(good(*asked, "--slo", "300ms", "--duration", 3, "--json").stdout)
    assert found["rate"] > 10
    assert found["p99"] <= 0.3
    assert found["queries"] > 0.5 * 3 * found["rate"]
    assert any(held for _, held in found["tried"])
    refused(*asked, "--slo", "1us", "--duration", 1, code=1, error="a single request takes")
    assert call(*asked).exit_code == 2


@pytest.mark.slow
def test_lost_requests_are_counted_when_the_server_dies(fresh: tuple[RunningServer, Path]) -> None:
    server, _ = fresh

    def kill() -> None:
        with TritonClient(server.http, NAME) as client:
            before = client.statistics().inferences
            while client.statistics().inferences < before + 50:
                time.sleep(0.05)
        server.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = call("load", server.grpc, "--model", NAME, "--rate", 200, "--duration", 60,
                  "--timeout", 2)  # fmt: skip
    killer.join()
    assert result.exit_code == 1, result.output
    numbers = result.stdout.splitlines()[0].split(", ")
    sent, answered, refusals, lost = [int(part.split()[1]) for part in numbers]
    assert answered >= 40
    assert lost > 0
    assert sent == answered + refusals + lost
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert error.startswith(f"Error: {lost} of {sent} requests were lost; ")
    unsent = 200 * 60 - sent
    assert "the server died after " in error
    assert f" s, {unsent} were not sent: " in error
    refused("load", server.http, "--model", NAME, error="No Triton server responds")


@pytest.mark.slow
def test_a_client_has_a_new_version_loaded_without_a_failed_request(
    fresh: tuple[RunningServer, Path], models: list[Path]
) -> None:
    server, repository = fresh

    def renew() -> None:
        export_triton(str(models[1]), repository, name=NAME, version="next")
        load_model(server)

    with TritonClient(server.grpc, NAME) as client:
        assert client.infer(images(1)).version == "1"
        helper = threading.Thread(target=renew)
        helper.start()
        total = load_until(client, "2")
        helper.join()
        answer = client.infer(images(2))
        assert set(total.versions) == {"1", "2"}, total.versions
        assert answer.version == "2"
        np.testing.assert_allclose(answer.logits, logits(models[1], images(2)), atol=CLOSE)
        broken = repository / NAME / "3"
        broken.mkdir()
        (broken / "model.py").write_text("raise ValueError('broken')")
        with pytest.raises(Exception, match="broken"):
            load_model(server)
        assert client.infer(images(1)).version == "2"


@pytest.mark.slow
def test_serve_finds_new_versions_itself_and_ends_with_an_interrupt(
    models: list[Path], tmp_path: Path
) -> None:
    repository, here = tmp_path / "repo", settings()
    export_triton(str(models[0]), repository, Serving(backend="python"), name=NAME)
    options = ["--server", SERVER, "--http-port", here.http, "--grpc-port", here.grpc]
    more = ["--poll", 1, "--log", tmp_path / "log"]
    command = [sys.executable, "-c", INTERRUPTIBLE, "serve", repository, *options, *more]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == f"{NAME}, version 1: ready\n"
            assert process.stdout.readline() == f"HTTP http://127.0.0.1:{here.http}\n"
            url = process.stdout.readline().split()[1]
            refused("serve", repository, *options, error=f"Port {here.http} of 127.0.0.1 cannot be")
            how = {"name": NAME, "version": "next"}
            renewal = threading.Thread(None, export_triton, None, (str(models[1]), repository), how)
            with TritonClient(url, NAME) as client:
                assert client.infer(images(1)).version == "1"
                renewal.start()
                total = load_until(client, "2")
            renewal.join()
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
    assert set(total.versions) == {"1", "2"}, total.versions
    assert process.returncode == 0
    assert rest == "Ctrl-C ends it.\nended\n"
    log = (tmp_path / "log").read_text()
    assert [log.count(f'"loading: {NAME}:{version}"') for version in (1, 2)] == [1, 1]


@pytest.mark.slow
def test_serve_reports_that_its_server_was_killed(repository: Path) -> None:
    here = settings()
    ports = ["--http-port", here.http, "--grpc-port", here.grpc]
    command = [sys.executable, "-m", "spvit_deploy", "serve", repository, "--server", SERVER,
               *ports]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen([*map(str, command)], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line == "Ctrl-C ends it.\n":
                (server,) = psutil.Process(process.pid).children()
                server.kill()
        assert process.stderr.read() == "Error: Triton was killed by signal 9, SIGKILL.\n"
    assert process.returncode == 1


@pytest.mark.slow
def test_what_the_server_does_not_have_is_refused(models: list[Path], tmp_path: Path) -> None:
    export_triton(str(models[0]), tmp_path / "repo", name=NAME)
    refused("serve", tmp_path / "repo", "--server", SERVER, error="the backend 'onnxruntime': nv")
    bare = find_server(str(find_server(str(SERVER), tmp_path).binary), tmp_path)
    assert bare.environment is None
    here = settings()
    refused("serve", tmp_path / "repo", "--server", bare.binary, "--http-port", here.http,
            "--grpc-port", here.grpc, code=1, error="onnxruntime")  # fmt: skip
