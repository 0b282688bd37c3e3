"""Outputs: never lost, never half written, never swapped for another's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spvit_deploy.core.errors import InputError, OutputExistsError
from spvit_deploy.core.output_folders import (
    _SETTLED,
    LOCK_FILE,
    OUTPUT_KINDS,
    OutputKind,
    ensure_free,
    lock_folder,
    new_folder,
)
from spvit_deploy.core.records import write_record


def fill(path: Path, text: str, force: bool = False) -> None:
    with new_folder(path, force) as staging:
        (staging / "config.json").write_text(text)


def test_the_second_of_two_runs_on_one_output_is_refused(tmp_path: Path) -> None:
    def overtaken() -> None:
        with new_folder(tmp_path / "o") as mine:
            (mine / "config.json").write_text("mine")
            fill(tmp_path / "o", "theirs")

    with pytest.raises(OutputExistsError, match="another run"):
        overtaken()
    assert (tmp_path / "o" / "config.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_what_a_killed_run_left_is_removed_and_a_run_at_work_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from spvit_deploy.core.output_folders import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as staging:\n"
        "    print(staging.parent.name, flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "o")]
    killed, working = (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    assert killed.stdout is not None
    assert working.stdout is not None
    left, held = (tmp_path / p.stdout.readline().strip() for p in (killed, working) if p.stdout)
    killed.kill()
    killed.wait()
    past = time.time() - 2 * _SETTLED
    for folder in (left, held):
        os.utime(folder, (past, past))
    fill(tmp_path / "o", "new")
    assert not left.exists()
    assert held.exists()
    working.kill()
    for process in (killed, working):
        process.communicate()


def test_outputs_of_another_kind_are_refused_at_once(tmp_path: Path) -> None:
    file, folder, link = tmp_path / "results.json", tmp_path / "folder", tmp_path / "link"
    file.write_text("{}")
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError, match="the output is a folder"):
        ensure_free(file, force=True)
    with pytest.raises(OutputExistsError, match="the output is a file"):
        ensure_free(folder, force=True, folder=False)
    with pytest.raises(OutputExistsError, match="broken link"):
        ensure_free(link, force=True)
    fill(folder, "in an empty folder", force=True)


def test_what_we_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="not created by spvit-deploy"):
        ensure_free(tmp_path / "photos", force=True)
    fill(tmp_path / "mixed", "{}")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"'notes\.txt', which was not created"):
        ensure_free(tmp_path / "mixed", force=True)
    fill(tmp_path / "run" / "lean", "{}")
    (tmp_path / "run" / "state.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="not created by spvit-deploy"):
        ensure_free(tmp_path / "run", force=True)
    fill(tmp_path / "all" / "onnx-fp32", "{}")
    (tmp_path / "all" / "exports.json").write_text("{}")
    ensure_free(tmp_path / "all", force=True)
    fill(tmp_path / "all" / "onnx-fp32" / "deeper", "{}")
    with pytest.raises(OutputExistsError, match="not created by spvit-deploy"):
        ensure_free(tmp_path / "all", force=True)


@pytest.mark.parametrize("kind", OUTPUT_KINDS, ids=lambda kind: kind.record)
def test_every_kind_of_output_is_replaced_where_nothing_else_is_in_it(
    kind: OutputKind, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def write(force: bool) -> None:
        with new_folder(output, force) as staging:
            write_record(staging / kind.record, {"kind": "any", "files": {"weights.bin": ""}})
            for name in ("weights.bin", *kind.files):
                (staging / name.replace("*", "x")).touch()
            if kind.outputs:
                fill(staging / "one", "{}")

    write(False)
    write(True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"'notes\.txt'"):
        write(True)
    (output / "notes.txt").rename(tmp_path / "notes.txt")
    (output / "photos").mkdir()
    (output / "photos" / "a.jpg").touch()
    with pytest.raises(OutputExistsError, match="'photos'"):
        write(True)


def test_what_could_never_be_replaced_is_not_written(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out") as staging:
            (staging / "unknown.json").write_text("{}")

    with pytest.raises(NotImplementedError, match=r"'unknown\.json'"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_call_reads_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "lean", "{}")
    for reads in (tmp_path / "lean", tmp_path / "lean" / "config.json", str(tmp_path / "lean")):
        with pytest.raises(OutputExistsError, match="is an input of this call"):
            ensure_free(tmp_path / "lean", force=True, reads=(reads, None))
    ensure_free(tmp_path / "lean", force=True, reads=("vit_tiny_patch16_224", tmp_path))


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    def twice() -> None:
        with lock_folder(tmp_path), lock_folder(tmp_path):
            pass

    with pytest.raises(InputError, match="is in use by another run"):
        twice()
    with lock_folder(tmp_path) as held:
        assert held
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_lock_gets_it_when_the_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from spvit_deploy.core.output_folders import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    threading.Timer(0.3, holder.kill).start()
    with lock_folder(tmp_path, wait=-1) as held:
        assert held
        assert holder.wait() != 0
    holder.communicate()


def test_where_nothing_can_be_locked_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with lock_folder(tmp_path / "file") as held:
        assert not held
