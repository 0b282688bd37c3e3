"""Trainings that are cut short go on as if nothing had been."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainings import finetune, finish, search, start

MOMENTS = 10


def contents(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


def killed_at(moment: float, work: Any, *args: Any) -> bool:
    """Whether a training was still at work when it was killed."""
    process = start(work, *args)
    process.join(moment)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


@pytest.mark.slow
def test_a_search_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    finish(search, tmp_path / "first")
    begun = time.perf_counter()
    finish(search, tmp_path / "whole")
    took = time.perf_counter() - begun
    names = ("gates.json", "supernet.safetensors", "log.jsonl")
    expected = contents(tmp_path / "whole", *names)
    assert contents(tmp_path / "first", *names) == expected
    draw, found = random.Random(), 0
    for index in range(MOMENTS):
        output, moment = tmp_path / f"{index}", draw.uniform(0, took)
        killed_at(moment, search, output)
        found += any((tmp_path / f"{index}.checkpoints").glob("step-*"))
        finish(search, output)
        assert contents(output, *names) == expected, f"killed after {moment} s of {took}"
        assert not (tmp_path / f"{index}.checkpoints").exists()
    print(found, took)
    assert found


def test_a_finetuning_killed_in_its_middle_goes_on(dense_folder: Path, tmp_path: Path) -> None:
    finish(finetune, dense_folder, tmp_path / "whole")
    process = start(finetune, dense_folder, tmp_path / "cut")
    while not list(tmp_path.glob("cut.checkpoints/step-*7")):
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert not (tmp_path / "cut").exists()
    finish(finetune, dense_folder, tmp_path / "cut")
    names = ("config.json", "model.safetensors", "log.jsonl")
    assert contents(tmp_path / "cut", *names) == contents(tmp_path / "whole", *names)
