"""Output folders: refused before long work, built beside their place, renamed into it when whole.

A reader never sees half of one, ``--force`` replaces only what commands wrote, and a lock keeps
other runs out of a folder that one works in.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from spvit_deploy.core.errors import InputError, OutputExistsError, SpvitError
from spvit_deploy.core.files import is_full, storage_error

LOCK_FILE = ".lock"
# Seconds after which a folder that nobody holds was left by a run that was killed.
_SETTLED = 60


@dataclass(frozen=True)
class OutputKind:
    """A kind of folder that commands write, and so may replace.

    Attributes:
        record: File that such a folder is known by.
        files: Patterns of the files beside it, those aside that the record lists in ``files``.
        outputs: Whether it holds folders, each of them an output of its own.
    """

    record: str
    files: tuple[str, ...] = ()
    outputs: bool = False


OUTPUT_KINDS = (
    OutputKind("config.json", ("model.*", "latency.json", "log.jsonl")),
    OutputKind("search.json", ("supernet.safetensors",)),
    OutputKind("gates.json"),
    # Triton's Python backend compiles what lies beside an export.
    OutputKind("export.json", ("__pycache__",)),
    OutputKind("exports.json", outputs=True),
    OutputKind("recommend.json", outputs=True),
)


@contextmanager
def lock_folder(folder: Path, wait: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a folder that one run at a time works in; a killed process releases it.

    Args:
        wait: Seconds to wait while another process or thread holds it; negative: without limit.

    Yields:
        Whether it is held: not on a file system that is read-only or has no locks.

    Raises:
        InputError: Another process or thread still holds it.
    """
    file = folder / LOCK_FILE
    lock = FileLock(file, timeout=wait, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder} is in use by another run.", "Wait for it to end, or choose another output."
        ) from None
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        # While it is held: once released, the file may be another's. Windows removes it on release.
        with suppress(OSError):
            file.unlink()
        lock.release()


def ensure_free(
    path: Path, force: bool, folder: bool = True, reads: Sequence[Path | str | None] = ()
) -> None:
    """Refuse an output that exists (unless ``force``) or that cannot be written, before long work.

    Args:
        folder: Whether the output is a folder, or a file.
        reads: What the call reads, and so must not replace.

    Raises:
        OutputExistsError: It exists, or something that is not an output is there.
        InputError, StorageError: As :func:`ensure_parent`.
    """
    kinds = ("a file", "a folder") if folder else ("a folder", "a file")
    again = "Choose another -o, or replace it with --force."
    try:
        if path.exists() and not force:
            raise OutputExistsError(f"{path} exists.", again)
        if path.is_symlink() and not path.exists():
            raise OutputExistsError(f"{path} is a broken link.", "Choose another -o, or remove it.")
        if path.exists() and path.is_dir() != folder:
            problem = f"{path} is {kinds[0]}: the output is {kinds[1]}."
            raise OutputExistsError(problem, "Choose another -o.")
        _require_apart(path, reads)
        if path.is_dir():
            _require_ours(path)
    except OSError as error:  # a name that is too long, or behind a folder that may not be read
        raise _unwritable(error, path) from error
    ensure_parent(path)


def ensure_parent(path: Path) -> None:
    """Refuse a place that cannot be written.

    Raises:
        InputError: What exists above it is a file, or a folder that is not writable.
        StorageError: The disk is full.
    """
    parent = path.absolute().parent
    try:
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file.", "Choose another -o.")
        # Permission bits do not suffice: root has all of them, and /proc takes no file.
        tempfile.TemporaryDirectory(dir=parent, prefix=_partial(path)).cleanup()
    except OSError as error:
        raise _unwritable(error, path) from error


def _unwritable(error: OSError, path: Path) -> SpvitError:
    """Return the error to raise before work starts: the call is wrong, unless the disk is full."""
    if is_full(error):
        return storage_error(error, path)
    return InputError(f"{path} cannot be written: {error.strerror or error}.", "Choose another -o.")


def _require_apart(output: Path, inputs: Sequence[Path | str | None]) -> None:
    """Refuse an output that is an input or contains one: replacing it would lose the input."""
    target = output.resolve()
    for given in inputs:
        if given is not None and Path(given).exists():
            source = Path(given).resolve()
            if source == target or source.is_relative_to(target):
                raise OutputExistsError(
                    f"{output} is an input of this call and cannot be its output.",
                    "Choose another -o.",
                )


def _require_ours(folder: Path) -> None:
    """Refuse to replace a folder that contains anything that no command wrote."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OutputExistsError(f"{folder} is where you are; it is not replaced.", "Go elsewhere.")
    unknown = _unknown_entry(folder)
    if unknown:
        raise OutputExistsError(
            f"{folder} holds '{unknown}', which was not created by spvit-deploy.",
            "Choose another -o, or remove it yourself.",
        )


def _unknown_entry(folder: Path) -> str:
    """Name the first entry of a folder that no command would have put there; empty if none."""
    entries = sorted(folder.iterdir())
    names = [entry.name for entry in entries]
    kinds = [kind for kind in OUTPUT_KINDS if kind.record in names]
    if names and not kinds:
        return names[0]
    patterns = [pattern for kind in OUTPUT_KINDS for pattern in (kind.record, *kind.files)]
    listed = set().union(*(_listed(folder / kind.record) for kind in kinds))
    for entry in entries:
        if entry.is_dir():
            if not any(kind.outputs for kind in kinds) or _unknown_entry(entry):
                return entry.name
        elif entry.name not in listed and not any(fnmatch(entry.name, one) for one in patterns):
            return entry.name
    return ""


def _listed(record: Path) -> set[str]:
    """Names of the files that a record lists; none if it is damaged."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        return set(json.loads(record.read_bytes()).get("files", {}).keys())
    return set()


@contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill, renamed to ``path`` when the block succeeds, removed when it fails.

    With ``force`` an old folder stays until the new one is complete. What a killed run left
    beside ``path`` is removed.

    Raises:
        OutputExistsError: It exists, or another run wrote it in the meantime.
        StorageError: No space, or not writable.
        NotImplementedError: What was written is not of a kind in :data:`OUTPUT_KINDS`.
    """
    ensure_free(path, force)
    with staging_folder(path) as staging:
        yield staging
        if unknown := _unknown_entry(staging):
            raise NotImplementedError(f"'{unknown}' is of no kind in OUTPUT_KINDS")
        move_into_place(staging, path.absolute(), force)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path`` to fill; what is complete can be renamed into place from it.

    It is removed in the end with what is left in it, and so is what a killed run left there.

    Raises:
        StorageError: No space, or not writable.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=_partial(path)))
    except OSError as error:
        raise storage_error(error, path) from error
    staging = beside / "new"
    try:
        with lock_folder(beside):
            staging.mkdir()
            yield staging
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _partial(path: Path) -> str:
    return f".{path.name}.partial-"


def _sweep(path: Path) -> None:
    """Remove what killed runs left beside ``path``; runs at work hold a lock."""
    for left in path.parent.iterdir():
        mine = left.name.startswith(_partial(path))
        with suppress(OSError, InputError):
            if mine and time.time() - left.stat().st_mtime > _SETTLED:
                with lock_folder(left) as held:
                    pass
                if held:
                    shutil.rmtree(left, ignore_errors=True)


def move_into_place(staging: Path, path: Path, force: bool) -> None:
    """Rename a complete folder to ``path``, with ``force`` in place of an old one.

    Raises:
        OutputExistsError: ``path`` exists, and ``force`` is not given.
        OSError: It cannot be renamed; the old one is where it was.
    """
    if not path.exists():
        staging.rename(path)
        return
    if not force:
        raise OutputExistsError(
            f"{path} was written by another run in the meantime.", "Choose another -o, or --force."
        )
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
    path.rename(old / "old")
    try:
        staging.rename(path)
    except BaseException:
        (old / "old").rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
