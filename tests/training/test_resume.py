"""Trainings that are cut short go on as if nothing had been."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spvit_deploy.core.errors import JobError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.seeding import Rank
from spvit_deploy.data.batches import Batches, open_batches
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.data.timm_dataset import StreamedImages
from spvit_deploy.training.finetune import FinetuneSettings
from spvit_deploy.training.loop import _Loop
from spvit_deploy.workflows.pipeline import Runner, dense_stage
from spvit_deploy.workflows.recipe import Recipe
from tests.conftest import NAME, TINY, TINY_ARGS
from tests.helpers.calls import good, refused
from tests.helpers.commands import start_command
from tests.helpers.paths import ROOT
from tests.helpers.training_processes import command, finetune, finish, start

pytestmark = pytest.mark.usefixtures("one_thread")

MOMENTS = 10
SEARCH = ["search", "--model", NAME, *TINY_ARGS, "--model-arg", "drop_path_rate=0.1",
          "--data", "digits", "--batch-size", 256, "--epochs", 3, "--budget", "50%",
          "--device", "cpu", "--checkpoint-every", 1]  # fmt: skip
# One that was killed after it wrote its output, and before it removed its checkpoints.
FORCE = ["--force"]


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
    finish(command, *SEARCH, "-o", tmp_path / "first")
    begun = time.perf_counter()
    finish(command, *SEARCH, "-o", tmp_path / "whole")
    took = time.perf_counter() - begun
    names = ("gates.json", "supernet.safetensors", "log.jsonl")
    expected = contents(tmp_path / "whole", *names)
    assert contents(tmp_path / "first", *names) == expected
    draw, found = random.Random(7), 0
    for index in range(MOMENTS):
        output, moment = tmp_path / f"{index}", draw.uniform(0, took)
        killed_at(moment, command, *SEARCH, "-o", output)
        if any((tmp_path / f"{index}.checkpoints").glob("step-*")):
            found += 1
            finish(command, *SEARCH, "-o", output, "--resume", *FORCE)
        elif not output.exists():
            finish(command, *SEARCH, "-o", output)
        assert contents(output, *names) == expected, f"killed after {moment} s of {took}"
        assert not (tmp_path / f"{index}.checkpoints").exists()
    assert found, "no moment was late enough for a checkpoint"


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


QUICK = ["--model", NAME, *TINY_ARGS, "--data", "digits", "--batch-size", 256, "--epochs", 2,
         "--budget", "50%", "--checkpoint-every", 2]  # fmt: skip


@pytest.fixture(scope="module")
def cut_once(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was cut short in step 7 of 10, which left checkpoints of 4 and 6."""
    root = tmp_path_factory.mktemp("cut")
    advance, steps = _Loop._advance, itertools.count(1)

    def until_seven(self: _Loop, *args: Any) -> None:
        if next(steps) == 7:
            raise JobError("Cut.")
        advance(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Loop, "_advance", until_seven)
        refused("search", *QUICK, "-o", root / "out", code=1, error="checkpoint of step 6 is kept")
    return root / "out.checkpoints"


def test_a_search_cut_after_its_last_step_logs_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("search", *QUICK, "-o", tmp_path / "whole")
    end = _Loop._end_epoch

    def not_the_last(self: _Loop, *args: Any) -> None:
        if self._step == 10:
            raise JobError("Cut.")
        end(self, *args)

    monkeypatch.setattr(_Loop, "_end_epoch", not_the_last)
    refused("search", *QUICK, "-o", tmp_path / "out", code=1, error="checkpoint of step 10 is kept")
    monkeypatch.undo()
    good("search", *QUICK, "-o", tmp_path / "out", "--resume")
    names = ("gates.json", "supernet.safetensors", "log.jsonl")
    assert contents(tmp_path / "out", *names) == contents(tmp_path / "whole", *names)


def test_a_checkpoint_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    """The files are those of a search that version 0.1.0 ran up to step 8 of 15."""
    old = ROOT / "tests" / "data" / "search-cut.checkpoints"
    shutil.copytree(old, tmp_path / "out.checkpoints")
    tiny = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2,
            "num_heads": 2, "num_classes": 10}  # fmt: skip
    args = [part for key, value in tiny.items() for part in ("--model-arg", f"{key}={value}")]
    search = ["search", "--model", NAME, *args, "--data", "digits", "--batch-size", 256,
              "--epochs", 3, "--budget", "50%", "--align", 1, "--stop-when-settled", 3,
              "--checkpoint-every", 8]  # fmt: skip
    result = good(*search, "-o", tmp_path / "out", "--resume")
    assert "going on after step 8" in result.stderr
    good(*search, "-o", tmp_path / "whole")
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            for name in ("out", "whole")]  # fmt: skip
    assert [line["step"] for line in logs[0]] == [5, 10, 10, 15]
    for line, other in zip(*logs, strict=True):
        assert line == pytest.approx(other, abs=1e-3)  # another CPU may round differently
    plans = [json.loads((tmp_path / name / "gates.json").read_bytes()) for name in ("out", "whole")]
    assert plans[0]["blocks"] == plans[1]["blocks"]


@pytest.fixture
def cut_run(cut_once: Path, tmp_path: Path) -> Path:
    """Its output, which is not there yet, beside its checkpoints."""
    shutil.copytree(cut_once, tmp_path / "out.checkpoints")
    return tmp_path / "out"


def kept(output: Path) -> list[str]:
    folder = output.with_name("out.checkpoints")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_damaged_checkpoint_is_skipped_with_a_warning(cut_run: Path, tmp_path: Path) -> None:
    good("search", *QUICK, "-o", tmp_path / "whole")
    assert kept(cut_run) == ["log.jsonl", "step-00000004", "step-00000006"]
    newest = cut_run.with_name("out.checkpoints") / "step-00000006"
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(content)
    result = good("search", *QUICK, "-o", cut_run, "--resume")
    lines = [line for line in result.stderr.splitlines() if "hash mismatch" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Warning: ")
    assert "Going on from the one before, of step 4" in lines[0]
    names = ("gates.json", "supernet.safetensors", "log.jsonl")
    assert contents(cut_run, *names) == contents(tmp_path / "whole", *names)
    assert kept(cut_run) == []


@pytest.mark.parametrize("harm", ["truncated", "missing", "no record", "code"])
def test_checkpoints_that_are_all_damaged_are_refused(harm: str, cut_run: Path) -> None:
    for folder in cut_run.with_name("out.checkpoints").glob("step-*"):
        if harm == "truncated":
            (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-100])
        elif harm == "missing":
            (folder / "state.pt").unlink()
        elif harm == "no record":
            (folder / "checkpoint.json").unlink()
        else:
            (folder / "checkpoint.json").write_text('{"kind": "checkpoint", "step": "x"}')
    refused("search", *QUICK, "-o", cut_run, "--resume", error="is intact")
    assert not cut_run.exists()


def test_a_run_that_was_cut_short_is_neither_lost_nor_mixed_with_another(
    cut_run: Path, tmp_path: Path
) -> None:
    here = ["-o", cut_run]
    refused("search", *QUICK, *here, error="cut short after step 6. Go on with --resume")
    resume = [*here, "--resume"]
    refused("search", *QUICK, "--lr", 1e-3, *resume, error="another run: lr 0.0005, now 0.001")
    refused("search", *QUICK, "--seed", 1, "--align", 4, *resume, error="seed 0, now 1")
    refused("search", *QUICK, "--batch-size", 128, *resume, error="batch-size 256, now 128")
    refused("search", *QUICK, "--budget", "60%", *resume, error="budget 50%, now 60%")
    refused("search", *QUICK, "--model-arg", "depth=2", *resume, error="another model")
    for index, label in itertools.product(range(2), "0123456789"):
        (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / label / f"{index}.png")
    images = ["--data", f"folder/{tmp_path / 'images'}"]
    refused("search", *QUICK, *images, *resume, error="images")
    finetuning = [part for part in QUICK if part not in ("--model", "--budget", "50%")]
    refused("finetune", *finetuning, *resume, error="stage search, now finetune")
    assert kept(cut_run) == ["log.jsonl", "step-00000004", "step-00000006"]
    good("search", *QUICK, "--lr", 1e-3, *here, "--force")
    assert kept(cut_run) == []
    refused("search", *QUICK, *resume, error="nothing left to go on with")


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    refused("search", *QUICK, "-o", tmp_path / "out", "--resume", error="holds no checkpoint")
    refused("search", *QUICK, "--checkpoint-every", "soon", "-o", tmp_path / "out", error="")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_folder: Path
) -> None:
    advance, steps = _Loop._advance, itertools.count(1)

    def poisoned(self: _Loop, images: torch.Tensor, labels: torch.Tensor) -> None:
        advance(self, images * (float("nan") if next(steps) == 7 else 1), labels)

    monkeypatch.setattr(_Loop, "_advance", poisoned)
    refused("finetune", dense_folder, "--data", "digits", "--batch-size", 256, "--epochs", 3,
            "--checkpoint-every", 1, "-o", tmp_path / "out", code=1,
            error="The loss became NaN in step 7, epoch 2. Try a smaller --lr. The checkpoint of "
            "step 6 is kept in")  # fmt: skip
    assert kept(tmp_path / "out") == ["log.jsonl", "step-00000005", "step-00000006"]


def test_a_training_that_diverged_goes_on_at_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_folder: Path
) -> None:
    advance, steps = _Loop._advance, itertools.count(1)

    def poisoned(self: _Loop, images: torch.Tensor, labels: torch.Tensor) -> None:
        advance(self, images * (float("nan") if next(steps) == 7 else 1), labels)

    monkeypatch.setattr(_Loop, "_advance", poisoned)
    asked = ["finetune", dense_folder, "--data", "digits", "--batch-size", 256, "--epochs", 3,
             "--checkpoint-every", 1, "-o", tmp_path / "out"]  # fmt: skip
    refused(*asked, code=1, error="Go on from it with --resume and that --lr.")
    refused(*asked, "--resume", "--lr", 1e-3, error="another run: lr 0.0005, now 0.001")
    refused(*asked, "--resume", "--lr", 1e-4, "--seed", 1, error="another run: seed 0, now 1")
    result = good(*asked, "--resume", "--lr", 1e-4)
    assert "Warning: after step 6 --lr is 0.0001; it was 0.0005." in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines}
    assert rates[5] > 1e-4 >= rates[10] > rates[15]


def test_a_full_disk_keeps_the_last_good_checkpoint(cut_run: Path) -> None:
    before = contents(cut_run.with_name("out.checkpoints") / "step-00000006", "state.pt")
    process = start_command("search", *QUICK, "-o", cut_run, "--resume", limit=100_000)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert "no space left" in stderr
    assert "The checkpoint of step 6 is kept in" in stderr
    assert "Traceback" not in stderr
    assert kept(cut_run) == ["log.jsonl", "step-00000004", "step-00000006"]
    assert contents(cut_run.with_name("out.checkpoints") / "step-00000006", "state.pt") == before


def test_the_log_tells_of_loss_cost_and_gates(cut_run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    good("search", *QUICK, "-o", cut_run, "--resume", "--tensorboard", tmp_path / "events")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 10]
    assert [line["epoch"] for line in lines] == [1, 2, 2]
    record = json.loads((tmp_path / "out" / "search.json").read_bytes())
    losses = [line["epoch_loss"] for line in lines if "epoch_loss" in line]
    assert record["history"][-1]["loss"] == [round(loss, 5) for loss in losses]
    for line in lines:
        assert line["budget"] == pytest.approx(0.5, abs=1e-3)
        assert 0 < line["cost"] <= 1
        for block in range(3):
            for gate in ("conv1x1", "conv3x3", "msa", "mlp"):
                assert 0 < line[f"gates/blocks.{block}/{gate}"] < 1
    events = EventAccumulator(str(tmp_path / "events" / "out"))
    events.Reload()
    for name in ("loss", "cost", "gates/blocks.0/msa"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(line["step"], line[name]) for line in lines[1:] if name in line]
        assert shown == [(step, pytest.approx(value)) for step, value in logged]


def test_tensorboard_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("search", *QUICK, "-o", tmp_path / "out", "--tensorboard", tmp_path / "events",
            error="pip install 'spvit-deploy[tensorboard]'")  # fmt: skip


GREY = Preprocessing(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))


def photos(root: Path) -> str:
    draw = random.Random(0)
    for label, index in itertools.product("ab", range(12)):
        (root / "train" / label).mkdir(parents=True, exist_ok=True)
        image = Image.frombytes("RGB", (12, 12), draw.randbytes(432))
        image.save(root / "train" / label / f"{index}.png")
    return f"folder/{root}"


def taken(spec: str, augment: str, workers: int, epoch: int, skip: int, rank: Rank) -> Any:
    batch = 6 // rank.world_size
    settings = DataSettings(spec=spec, batch_size=batch, augment=augment, workers=workers)
    batches = open_batches(settings, GREY, train=True, seed=3, rank=rank)
    return list(batches.epoch(epoch, skip))


@pytest.mark.parametrize(("augment", "workers"), [("shift", 0), ("timm", 0), ("timm", 2)])
def test_an_epoch_goes_on_in_its_middle_and_is_shared(
    augment: str, workers: int, tmp_path: Path
) -> None:
    spec, whole = photos(tmp_path), Rank()
    full = taken(spec, augment, 0, 1, 0, whole)
    other = taken(spec, augment, 0, 2, 0, whole)
    assert not torch.equal(full[0][0], other[0][0])
    torch.rand(3)
    random.random()
    rest = taken(spec, augment, workers, 1, 2, whole)
    assert len(full) == 3
    assert len(rest) == 1
    for (images, labels), (again, same) in zip(full[2:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    halves = [taken(spec, augment, workers, 1, 0, Rank(index, 2)) for index in range(2)]
    for index, (images, labels) in enumerate(full):
        for half, parts in enumerate(halves):
            assert torch.equal(parts[index][0], images[half::2])
            assert torch.equal(parts[index][1], labels[half::2])


def test_images_that_are_done_are_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spvit_deploy.data import batches as data

    loaded: list[Any] = []
    get = data.PreparedImages.__getitem__
    monkeypatch.setattr(
        data.PreparedImages,
        "__getitem__",
        lambda self, key: (loaded.append(key), get(self, key))[1],
    )
    taken(photos(tmp_path), "timm", 0, 0, 2, Rank())
    assert len([key for key in loaded if isinstance(key, tuple)]) == 6


def test_data_that_stream_are_passed_over() -> None:
    draw = random.Random(0)
    images = [(Image.frombytes("L", (8, 8), draw.randbytes(64)), index % 2) for index in range(10)]
    source = Source(StreamedImages(images), ("a", "b"), True, None, streams=True)
    batches = Batches(source, GREY, DataSettings(spec="stream", batch_size=4, workers=0), True)
    full, rest = list(batches.epoch(0)), list(batches.epoch(0, 1))
    assert [len(labels) for _, labels in full] == [4, 4, 2]
    assert [len(labels) for _, labels in rest] == [4, 2]
    assert torch.equal(full[1][0], rest[0][0])
    assert not torch.equal(full[0][0], next(batches.epoch(1))[0])


def test_a_recipe_goes_on_in_the_middle_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.model_validate({
        "output": str(tmp_path), "checkpoint_every": "3",
        "model": {"name": NAME, "args": TINY}, "data": {"spec": "digits", "batch_size": 256},
        "train": {"epochs": 2},
    })  # fmt: skip
    advance, steps = _Loop._advance, itertools.count(1)

    def until_eight(self: _Loop, *args: Any) -> None:
        if next(steps) == 8:
            raise JobError("Cut.")
        advance(self, *args)

    monkeypatch.setattr(_Loop, "_advance", until_eight)
    with pytest.raises(JobError, match="checkpoint of step 6 is kept"):
        dense_stage(Runner(tmp_path), recipe, "")
    dense_stage(Runner(tmp_path), recipe, "")
    assert "going on after step 6" in capsys.readouterr().err
    assert next(steps) == 8 + 4 + 1
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "state.json"}
    changed = recipe.model_copy(update={"train": FinetuneSettings(epochs=3)})
    dense_stage(Runner(tmp_path), changed, "")
    assert "going on" not in capsys.readouterr().err


def test_a_log_that_lost_lines_is_warned_of(cut_run: Path) -> None:
    log = cut_run.with_name("out.checkpoints") / "log.jsonl"
    lines = log.read_bytes()
    log.write_bytes(lines[:-20])
    result = good("search", *QUICK, "-o", cut_run, "--resume")
    count = lines.count(b"\n")
    assert f"has {count - 1} of the {count} lines it had" in " ".join(result.stderr.split())
    assert [
        json.loads(line)["step"] for line in (cut_run / "log.jsonl").read_text().splitlines()
    ] == [10, 10]
