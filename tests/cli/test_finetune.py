"""`finetune`: data and teachers that cannot be used, numbers, interrupts."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import time
from pathlib import Path

from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import call, good, refused
from tests.helpers.commands import start_command
from tests.helpers.images import image_folder


def test_data_that_cannot_be_used(work: Path, tmp_path: Path) -> None:
    tune = ["finetune", work / "lean", "--epochs", "1", "-o", tmp_path / "out", "--data"]
    (tmp_path / "empty").mkdir()
    refused(*tune, "folder", "--data-dir", tmp_path / "empty", error="empty")
    one = image_folder(tmp_path / "one", ["cat"], 3)
    refused(*tune, f"folder/{one}", error="only one class (cat)")
    three = image_folder(tmp_path / "three", ["a", "b", "c"], 3)
    refused(*tune, f"folder/{three}", error="3 classes, the model 10")
    refused(*tune, "no-such-data", error="unknown")
    refused(*tune, "torch/fashion_mnist", "--data-dir", tmp_path, error="fashion_mnist")
    refused(*tune, "folder/nowhere", error="not a folder")
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=3", "--epochs", "1",
         "--data", f"folder/{three}", "-o", tmp_path / "out")  # fmt: skip
    # An unreadable image is passed over in training, and would make an evaluation wrong.
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", "1",
         "--data", f"folder/{image_folder(tmp_path / 'split' / 'train', ['train', 'b'], 8)}",
         "-o", tmp_path / "two")  # fmt: skip
    cut = tmp_path / "split" / "train" / "b" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-800])
    passed = good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", "1",
                  "--data", f"folder/{tmp_path / 'split'}", "-o", tmp_path / "cut")  # fmt: skip
    assert "b/1.png cannot be read: " in passed.stderr
    assert "It is passed over." in passed.stderr
    val = image_folder(tmp_path / "split" / "val", ["train", "b"], 3)
    (val / "train" / "1.png").write_bytes(b"no image")
    refused("evaluate", tmp_path / "two", "--data", f"folder/{tmp_path / 'split'}",
            error="1.png cannot be read")  # fmt: skip
    refused("finetune", NAME, "--data", "torch/fashion_mnist", "-o", tmp_path / "x",
            error="Name it with --data-dir")  # fmt: skip
    for spec, package in (("hfds/x/y", "datasets"),):
        if importlib.util.find_spec(package) is None:
            refused("finetune", NAME, "--data", spec, "-o", tmp_path / "x",
                    error=f"pip install {package}")  # fmt: skip


def test_folders_that_are_neither_split_nor_class(tmp_path: Path) -> None:
    """timm would call images after the folder that they lie in, or leave whole classes out."""

    def refuse(root: Path, error: str) -> None:
        refused("finetune", NAME, *TINY_ARGS, "--data", f"folder/{root}", "-o", tmp_path / "out",
                error=error)  # fmt: skip

    one = image_folder(image_folder(tmp_path / "one" / "train", ["x", "y"], 2).parent, ["cat"], 2)
    refuse(one, f"beside it lies cat, as classes do. Name {one / 'train'} if that is the split")
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", 0,
         "--data", f"folder/{one / 'train'}", "-o", tmp_path / "split")  # fmt: skip
    deep = image_folder(tmp_path / "deep", ["cat/a", "cat/b", "dog/a"], 2)
    refuse(deep, f"the images in {deep / 'cat' / 'a'} do not lie in the folder of a class")
    high = image_folder(tmp_path / "high", ["cat", "dog"], 2)
    shutil.copy(high / "cat" / "0.png", high)
    refuse(high, f"the images in {high} do not lie in the folder of a class")


def test_a_teacher_is_looked_at_first(work: Path, tmp_path: Path) -> None:
    tune = ["finetune", work / "lean", "--data", "digits", "-o", tmp_path / "out", "--teacher"]
    for teacher, error in (
        ("vit_tinny", "no model 'vit_tinny'"),
        (tmp_path, "neither a dense nor"),
    ):
        refused(*tune, teacher, error=error)
        assert len(call(*tune, teacher).stderr.splitlines()) == 1
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "img_size=32", "--data", "digits",
         "--epochs", 0, "-o", tmp_path / "larger")  # fmt: skip
    refused(*tune, tmp_path / "larger", error="The teacher takes images of (1, 32, 32)")
    refused(*tune[:3], "folder/nowhere", *tune[4:], tmp_path / "larger", error="not a folder")


def test_numbers_that_are_none(work: Path, tmp_path: Path) -> None:
    tune = ["finetune", work / "lean", "--data", "digits", "-o", tmp_path / "out"]
    for option in ("--lr", "--weight-decay", "--distill-temperature"):
        for value in ("nan", "inf"):
            assert call(*tune, option, value).exit_code == 2
    assert call(*tune, "--label-smoothing", "1").exit_code == 2
    refused(
        "evaluate", tmp_path / "nope", "--data", "digits", error="not a dense, lean or exported"
    )


def test_an_interrupt_leaves_the_old_output(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(work / "lean", out)
    before = (out / "model.safetensors").read_bytes()
    process = start_command(
        "finetune", work / "lean", "--data", "digits", "--epochs", 5000, "-o", out, "--force"
    )
    assert process.stderr is not None
    while "fine-tune" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, stderr
    assert "Interrupted" in stderr
    assert "Traceback" not in stderr
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
