"""WebDataset shards and rows of `datasets`: found, read once per epoch, and resumed."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.seeding import Rank, seeded_generator
from spvit_deploy.data.batches import open_batches
from spvit_deploy.data.sampling import shuffle_indices
from spvit_deploy.data.sources import DigitImages, open_source
from spvit_deploy.data.spec import DataSettings, EncodedImage
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import good, refused
from tests.helpers.commands import start_command
from tests.helpers.training_processes import command, finish, start

pytestmark = pytest.mark.usefixtures("one_thread")

GREY = Preprocessing(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
IMAGES = 50
Members = list[tuple[str, bytes]]


def png(index: int) -> bytes:
    """Encode an image with a grey level of its own."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), 4 * index).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members(numbers: range) -> Members:
    return [
        part
        for number in numbers
        for part in ((f"{number}.png", png(number)), (f"{number}.cls", str(number % 2).encode()))
    ]


def write_shards(folder: Path, split: str = "train-", first: int = 0) -> Path:
    for shard, start_at in enumerate(range(0, IMAGES, 17)):
        numbers = range(first + start_at, first + min(start_at + 17, IMAGES))
        write_shard(folder / f"{split}{shard:03d}.tar", members(numbers))
    return folder


def write_rows(folder: Path) -> Path:
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"])
    )
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        for shard, numbers in enumerate((range(30), range(30, IMAGES))):
            columns = {
                "image": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers],
                "label": [n % 2 for n in numbers],
            }
            rows = datasets.Dataset.from_dict(columns, features=features)
            rows.to_parquet(folder / f"{split}-{shard:05d}-of-00002.parquet")
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_shards(tmp_path / "wds")
    write_rows(tmp_path / "rows")
    return tmp_path


def epoch(spec: str, number: int = 0, skip: int = 0, rank: Rank | None = None, **options: Any):  # type: ignore[no-untyped-def]
    asked = {"augment": "timm", "workers": 0, **options}
    rank = rank or Rank()
    settings = DataSettings(spec=spec, batch_size=10 // rank.world_size, **asked)
    batches = open_batches(settings, GREY, train=True, seed=3, rank=rank)
    return list(batches.epoch(number, skip))


def seen(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Counter[int]:
    """Count images by their grey level."""
    greys = [(images[:, 0, 4, 4] * 0.5 + 0.5) * 255 / 4 for images, _ in batches]
    return Counter(torch.cat(greys).round().int().tolist())


@pytest.mark.parametrize("kind", ["wds", "hfds", "hfids"])
def test_an_epoch_has_each_image_once_however_it_is_shared(kind: str, data: Path) -> None:
    spec = f"{kind}/{data / ('wds' if kind == 'wds' else 'rows')}"
    whole = epoch(spec, 1)
    held_out = IMAGES // 5 if kind == "wds" else 0  # these shards have no other split
    assert len(whole) == (IMAGES - held_out) // 10
    plain = epoch(spec, 1, augment="none")
    assert all(torch.equal(a[1], b[1]) for a, b in zip(whole, plain, strict=True))
    assert set(seen(plain).values()) == {1}
    assert sum(seen(plain).values()) == 10 * len(whole)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(whole, epoch(spec, 2), strict=True))
    again = epoch(spec, 1, workers=2)
    rest = epoch(spec, 1, skip=2)
    halves = [epoch(spec, 1, rank=Rank(index, 2)) for index in range(2)]
    for index, (images, labels) in enumerate(whole):
        assert torch.equal(again[index][0], images)
        assert torch.equal(again[index][1], labels)
        for half, parts in enumerate(halves):
            assert torch.equal(parts[index][0], images[half::2])
        if index >= 2:
            assert torch.equal(rest[index - 2][0], images)


def test_a_stream_is_passed_over_without_decoding(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[EncodedImage] = []
    decode = EncodedImage.decode
    monkeypatch.setattr(
        EncodedImage, "decode", lambda self: (decoded.append(self), decode(self))[1]
    )
    epoch(f"hfids/{data / 'rows'}", 0, skip=3)
    assert len(decoded) == 20


def test_the_obvious_spellings_find_the_same_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "top" / "some")
    write_shards(tmp_path / "top" / "some", "val-")
    for split in ("train", "val"):
        write_shards(tmp_path / "top" / "apart" / split, "")
    top, some = tmp_path / "top", tmp_path / "top" / "some"
    for asked in (
        {"spec": f"wds/{some}"}, {"spec": "wds/some", "root": str(top)},
        {"spec": "wds/name", "root": str(some)}, {"spec": "wds/", "root": str(some)},
        {"spec": f"wds/{some}/train-{{000..002}}.tar"}, {"spec": f"wds/{some}/train-*.tar"},
        {"spec": f"wds/{some}", "train_split": "train-{000..002}.tar|50", "val_split": "val"},
        {"spec": "wds/apart", "root": str(top)},
        {"spec": f"wds/{top}/apart/train/{{000..002}}.tar"},
    ):  # fmt: skip
        for train in (True, False):
            source = open_source(DataSettings(**asked), train)
            assert source.size == IMAGES, (asked, train)
            assert source.classes == 2
            names = {shard.path for shard in source.images.shards}
            assert all(("train" in name) == train for name in names), asked
    (some / "_info.json").write_text(json.dumps(
        {"splits": {"train": {"filenames": ["train-000.tar", "val-000.tar"]}}}
    ))  # fmt: skip
    assert open_source(DataSettings(spec=f"wds/{some}"), True).size == 34


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(0, 3), st.integers(1, 60)
)
def test_parts_are_shuffled_near_each_other(parts: list[int], seed: int, window: int) -> None:
    size = sum(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spvit_deploy.data.sampling.SHUFFLE_WINDOW", window)
        order = shuffle_indices(size, parts, seeded_generator(seed))
        assert torch.equal(order, shuffle_indices(size, parts, seeded_generator(seed)))
    assert sorted(order.tolist()) == list(range(size))
    if size <= window:
        return
    part_of = torch.repeat_interleave(torch.tensor(parts))
    whole = max(len(set(part_of[piece].tolist())) for piece in order.split(window))
    assert whole <= window // min(parts) + 2


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        ("missing", "train-001.tar is missing; 1 of 3 shards are"),
        ("not a tar", "train-001.tar cannot be read: not an uncompressed tar file"),
        ("cut", "train-001.tar is truncated"),
        ("changed", "train-001.tar cannot be read: the file is damaged after"),
        ("no label", "train-001.tar: sample 17 has no label. Put its class number into KEY.cls"),
        ("word", "train-001.tar: sample 17: label 'cat' is not a class number"),
        ("no image", "train-001.tar: sample 17 has no image, but cls"),
        ("class", "has 8 classes ("),
    ],
)
def test_shards_that_are_wrong_are_refused_at_the_start(
    harm: str, error: str, tmp_path: Path
) -> None:
    shard = write_shards(tmp_path / "wds") / "train-001.tar"
    content = shard.read_bytes()
    if harm == "missing":
        shard.unlink()
    elif harm == "not a tar":
        shard.write_bytes(b"no tar" * 1000)
    elif harm == "cut":
        shard.write_bytes(content[: 5 * 512 + 7])
    elif harm == "changed":
        shard.write_bytes(content[:2048] + b"x" * 512 + content[2560:])
    else:
        parts: dict[str, Members] = {
            "no label": [("17.png", png(17))], "word": [("17.png", png(17)), ("17.cls", b"cat")],
            "no image": [("17.cls", b"1")], "class": [("17.png", png(17)), ("17.cls", b"7")],
        }  # fmt: skip
        write_shard(shard, [*parts[harm], *members(range(18, 34))])
    for spec in (f"wds/{tmp_path / 'wds'}/train-{{000..002}}.tar", f"wds/{tmp_path / 'wds'}"):
        if spec.endswith(".tar") or harm != "missing":
            refused("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--data", spec,
                    "-o", tmp_path / "out", error=error)  # fmt: skip
    assert not list(tmp_path.glob("out*"))


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_a_truncated_shard_is_refused(place: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder) / "train-0.tar", members(range(6)))
        content = shard.read_bytes()
        end = 6 * 4 * 512
        shard.write_bytes(content[: place % (end + 1)])
        with pytest.raises(DataError, match=r"train-0\.tar"):
            open_source(DataSettings(spec=f"wds/{folder}"), True)


def test_a_damaged_image_ends_a_training_that_resumes_when_it_is_fixed(
    tmp_path: Path,
) -> None:
    folder = write_shards(tmp_path / "wds")
    write_shards(folder, "val-")
    tune = ["finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", 2, "--data",
            f"wds/{folder}", "--batch-size", 5, "--augment", "timm", "--checkpoint-every", 1,
            "--device", "cpu"]  # fmt: skip
    good(*tune, "--workers", 0, "-o", tmp_path / "whole")
    order = shuffle_indices(IMAGES, (17, 17, 16), seeded_generator(0, 0)).tolist()
    late = next(number for number in order[25:] if 17 <= number < 34)
    shard, content = folder / "train-001.tar", (folder / "train-001.tar").read_bytes()
    broken = [(n, b"no image" if n == f"{late}.png" else c) for n, c in members(range(17, 34))]
    write_shard(shard, broken)
    refused(*tune, "--workers", 2, "-o", tmp_path / "out", code=1,
            error=f"{shard}: sample {late} cannot be read: not an image.")  # fmt: skip
    assert list((tmp_path / "out.checkpoints").glob("step-*"))
    shard.write_bytes(content)
    good(*tune, "--workers", 0, "-o", tmp_path / "out", "--resume")
    for name in ("log.jsonl", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def digits(root: Path) -> Path:
    """scikit-learn's digits as shards and as rows."""
    for train in (True, False):
        split, images = "train" if train else "validation", DigitImages(train)
        parts: Members = []
        for index, (image, label) in enumerate(images[i] for i in range(len(images))):
            stream = io.BytesIO()
            image.save(stream, "PNG")
            parts += [(f"{index}.png", stream.getvalue()), (f"{index}.cls", str(label).encode())]
        for shard in range(4):
            size = len(parts) // 8 * 2
            content = parts[shard * size : (shard + 1) * size if shard < 3 else None]
            write_shard(root / "wds" / f"{split}-{shard}.tar", content)
        columns = {
            "image": [{"bytes": content, "path": None} for _, content in parts[::2]],
            "label": [int(label) for _, label in parts[1::2]],
        }
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=list("0123456789"))
        )
        (root / "rows").mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.to_parquet(root / "rows" / f"{split}.parquet")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wds/wds", "hfids/rows"])
def test_a_killed_training_on_data_at_scale_resumes(kind: str, tmp_path: Path) -> None:
    digits(tmp_path)
    tune = ["finetune", NAME, *TINY_ARGS, "--data", kind, "--data-dir", tmp_path, "--epochs", 2,
            "--batch-size", 128, "--augment", "timm", "--workers", int(kind == "wds/wds"),
            "--checkpoint-every", 1, "--device", "cpu"]  # fmt: skip
    finish(command, *tune, "-o", tmp_path / "whole")
    process = start(command, *tune, "-o", tmp_path / "cut")
    while not list(tmp_path.glob("cut.checkpoints/step-*5")):
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    finish(command, *tune, "-o", tmp_path / "cut", "--resume")
    for name in ("log.jsonl", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_that_are_wrong(data: Path, tmp_path: Path) -> None:
    tune = ["finetune", NAME, *TINY_ARGS, "-o", tmp_path / "out", "--data"]
    for kind in ("hfds", "hfids"):
        rows = f"{kind}/{data / 'rows'}"
        refused(*tune, rows, "--train-split", "nope", error="vailable splits" if "ids" in kind else
                "Should be one of")  # fmt: skip
    refused(*tune, "wds/https://there/{0..3}.tar", error="Copy or mount them")
    refused(*tune, f"wds/{data / 'rows'}", error="no shards (*.tar)")
    (data / "rows" / "train-00001-of-00002.parquet").write_bytes(b"no parquet")
    refused(*tune, f"hfids/{data / 'rows'}", error="--data hfids/")


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_files_of_rows_that_are_wrong_are_named_in_one_line(
    harm: str, kind: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = data / "rows" / "train-00001-of-00002.parquet"
    error = f"{file} is truncated or damaged. Download or create it again"
    if harm == "missing":
        file.unlink()
        error = f"{file} is missing; 1 of 2 files are. Download what is missing"
    else:
        file.write_bytes(file.read_bytes()[:-100])
    refused("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2",
            "--data", f"{kind}/{data / 'rows'}", "-o", tmp_path / "out",
            error=error)  # fmt: skip
    assert "Failed to read" not in caplog.text
    # What the other split lacks is no matter where rows are read as they are needed.
    if harm == "missing" and kind == "hfids":
        settings = DataSettings(spec=f"{kind}/{data / 'rows'}")
        assert open_source(settings, False).size == IMAGES


def test_splits_that_data_do_not_have_are_refused(data: Path, tmp_path: Path) -> None:
    write_shards(data / "wds", "val-")
    for label in "ab":
        for split in ("train", "val"):
            (data / "images" / split / label).mkdir(parents=True)
            (data / "images" / split / label / "0.png").write_bytes(png(3))
    tune = ["finetune", NAME, *TINY_ARGS, "-o", tmp_path / "out", "--data-dir", data, "--data"]
    for spec, there in (
        ("digits", "train, validation"), ("folder/images", "train, val"),
        ("hfds/rows", "train, validation"), ("hfids/rows", "train, validation"),
        ("wds/wds", "train, val"), ("wds/wds/train-{000..002}.tar", "train, val"),
        ("torch/mnist", "train, test"),
    ):  # fmt: skip
        refused(*tune, spec, "--val-split", "nope",
                error=f"--data {spec} --data-dir {data} has no split 'nope' for --val-split; there "
                f"are {there}. Name one of these, or leave --val-split out.")  # fmt: skip
        if not spec.startswith("hf"):
            refused(*tune, spec, "--train-split", "nope", error="'nope' for --train-split; there")
    for label in "ab":
        (data / "classes" / label).mkdir(parents=True)
    refused(*tune, "folder/classes", "--val-split", "test", error="Leave --val-split out.")
    # What is there is taken, by its own name, and not the one that is usual.
    for spec in ("digits", f"wds/{data / 'wds'}", f"folder/{data / 'images'}"):
        settings = DataSettings(spec=spec, val_split="train")
        held = open_source(settings, False).size
        assert held == open_source(settings, True).size
    assert len(DigitImages(False)) < len(DigitImages(True))


@pytest.mark.slow
def test_a_full_disk_leaves_a_training_at_work(data: Path, tmp_path: Path) -> None:
    tune = ["finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--data",
            f"wds/{data / 'wds'}", "--epochs", 2, "--batch-size", 5, "--checkpoint-every", 8,
            "--device", "cpu"]  # fmt: skip
    whole = start_command(*tune, "-o", tmp_path / "whole")
    _, stderr = whole.communicate(timeout=120)
    assert whole.returncode == 0, stderr
    weights = (tmp_path / "whole" / "model.safetensors").stat().st_size
    # A checkpoint has two moments beside each weight.
    process = start_command(*tune, "-o", tmp_path / "out", limit=weights + 1000)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Warning: no checkpoint of step 8: " in stderr
    assert "no space left" in stderr
    assert "Traceback" not in stderr
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out"]
    log = (tmp_path / "out" / "log.jsonl").read_bytes()
    assert log == (tmp_path / "whole" / "log.jsonl").read_bytes()
