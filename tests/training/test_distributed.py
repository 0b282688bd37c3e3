"""Two processes do what one does with batches twice as large."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spvit_deploy.benchmarks.latency_tables.table import LatencyFile
from spvit_deploy.core.errors import JobError
from spvit_deploy.core.records import write_record
from spvit_deploy.families.checkpoints import read_state_dict
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.training.loop import _Loop
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import call, good, refused
from tests.helpers.latency_tables import a_table

pytestmark = pytest.mark.usefixtures("one_thread")

TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
# On GPUs accelerate starts its processes so; --device cpu keeps them off these.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0"]  # fmt: skip


def launch(*parts: object, by: Sequence[str] = TORCHRUN) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *by, *map(str, parts)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def without_launcher(*parts: object) -> list[subprocess.Popen[str]]:
    """Two processes that nobody ends when one of them dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *map(str, parts)], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**here, "RANK": str(index), "LOCAL_RANK": str(index)},
        )
        for index in range(2)
    ]  # fmt: skip


def odd_images(root: Path) -> str:
    """23 images of two classes: two processes cannot take as many each."""
    draw = random.Random(0)
    for index in range(23):
        folder = root / "train" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (16, 16), draw.randbytes(256)).save(folder / f"{index}.png")
    return f"folder/{root}"


def search_into(output: Path, share: int, budget: str) -> list[object]:
    return ["search", "--model", NAME, *TINY_ARGS, "--device", "cpu", "--lr", 2e-3,
            "--data", "digits", "--epochs", 2, "--batch-size", 128 // share,
            "--budget", budget, "--checkpoint-every", 5, "-o", output]  # fmt: skip


def commands(root: Path, lean: Path, images: str, share: int, budget: str) -> list[list[str]]:
    both = ["--device", "cpu", "--lr", 2e-3]
    search = search_into(root / "search", share, budget)
    finetune = ["finetune", lean, *both, "--data", images, "--epochs", 3, "--augment", "timm",
                "--batch-size", 64 // share, "--teacher", lean, "-o", root / "tuned"]  # fmt: skip
    return [[str(part) for part in command] for command in (search, finetune)]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_doubled_batch(
    make_lean: Callable[..., tuple[SavedModel, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, lean = make_lean(["conv3x3", "conv1x1", "msa"], [40, 96, 16], num_classes=2)
    images = odd_images(tmp_path / "images")
    write_record(tmp_path / "times.json", LatencyFile(tables=(a_table(),)))
    budget = f"50%@onnxruntime:{tmp_path / 'times.json'}"
    cut_short(search_into(tmp_path / "cut", 1, budget), monkeypatch)
    resume = [str(part) for part in (*search_into(tmp_path / "cut", 2, budget), "--resume")]
    both = [*commands(tmp_path / "two", lean, images, 2, budget), resume]
    process = launch("-m", "tests.helpers.several", json.dumps(both))
    for command in commands(tmp_path / "one", lean, images, 1, budget):
        good(*command)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert stdout.count("wrote ") == 3
    assert "going on after step 15" in stderr
    plans = [json.loads((tmp_path / n / "gates.json").read_bytes())["blocks"]
             for n in ("one/search", "two/search", "cut")]  # fmt: skip
    assert plans[0] == plans[1] == plans[2]
    for folder, weights in (("search", "supernet"), ("tuned", "model")):
        logs = [log_of(tmp_path / n / folder) for n in ("one", "two")]
        assert len(logs[0]) == len(logs[1]) > 2
        for one, two in zip(*logs, strict=True):
            assert two == pytest.approx(one, abs=1e-4)
        states = [read_state_dict(tmp_path / n / folder / f"{weights}.safetensors")
                  for n in ("one", "two")]  # fmt: skip
        for name, tensor in states[0].items():
            assert torch.allclose(tensor.float(), states[1][name].float(), atol=1e-3), name


def cut_short(command: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it up to step 17, in this process alone."""
    advance, steps = _Loop._advance, itertools.count(1)

    def until(self: _Loop, *args: Any) -> None:
        if next(steps) == 17:
            raise JobError("Cut.")
        advance(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "_advance", until)
        refused(*command, code=1, error="checkpoint of step 15 is kept")


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(part) for part in text.split()]


LONG = ["search", "--model", NAME, *TINY_ARGS, "--data", "digits", "--epochs", 5000,
        "--device", "cpu", "--checkpoint-every", 3, "--budget", "50%"]  # fmt: skip


def until_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    while not list((folder / "out.checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("by", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_process_that_dies_ends_the_job_and_leaves_its_checkpoint(
    by: list[str], tmp_path: Path
) -> None:
    process = launch("-m", "spvit_deploy", *LONG, "-o", tmp_path / "out", by=by)
    try:
        until_checkpoint(process, tmp_path)
        os.kill(children_of(process.pid)[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "exitcode  : -9" in stderr
    assert stderr.count("Error: Another process of this job ended") == 1
    assert "Unexpected" not in stderr
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.checkpoints").glob("step-*/checkpoint.json"))


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_the_remaining_process_ends_by_itself_and_reports_it(dies: int, tmp_path: Path) -> None:
    processes = without_launcher("-m", "spvit_deploy", *LONG, "-o", tmp_path / "out")
    try:
        until_checkpoint(processes[0], tmp_path)
        processes[dies].kill()
        _, stderr = processes[1 - dies].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    processes[dies].communicate()
    assert processes[1 - dies].returncode == 1, stderr
    lines = [line for line in stderr.splitlines() if "Error" in line]
    assert len(lines) == 1, stderr
    assert "Another process of this job ended" in lines[0]
    assert "--resume goes on from the last checkpoint" in lines[0]
    assert "Traceback" not in stderr
    assert list((tmp_path / "out.checkpoints").glob("step-*/checkpoint.json"))


def test_wrong_calls_are_refused_by_the_first_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    materialize = ["materialize", tmp_path, "-o", tmp_path / "out"]
    search = ["search", "--model", NAME, "--data", "digits", "--budget", "50%",
              "-o", tmp_path / "out"]  # fmt: skip
    refused(*materialize, error="materialize is for one process; 2 were launched")
    refused(*search, "--resume", error="holds no checkpoint")
    refused(*search, "--device", "mps", error="mps")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("spvit_deploy.cli.main._TO_SPEAK", 0)
    result = call(*search, "--resume")
    assert result.exit_code == 2
    assert "Error" not in result.output
