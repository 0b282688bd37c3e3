"""The processes that share a training, connected by accelerate."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor, distributed

from spvit_deploy.core.devices import pick_device
from spvit_deploy.core.errors import DataError, JobError, RuntimeMissingError, first_line
from spvit_deploy.core.seeding import SINGLE_RANK, Rank, world_size

_T = TypeVar("_T")
# Parts of torch's messages when another process is gone.
_LOST = ("Connection closed", "Connection reset", "Timed out", "NCCL", "Gloo", "gloo")


@dataclass(frozen=True)
class Processes:
    """The processes of a job; collectives of a single process do nothing."""

    rank: Rank = SINGLE_RANK

    @property
    def several(self) -> bool:
        """Whether there are more than one."""
        return self.rank.world_size > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes for all."""
        return self.rank.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor [any shape] over all processes, in place, and return it."""
        if self.several:
            distributed.all_reduce(tensor)
        return tensor

    def all_agree(self, yes: bool, device: torch.device) -> bool:
        """Return whether all processes pass True; each waits for the last."""
        return not int(self.sum(torch.tensor(0 if yes else 1, device=device)))

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.several:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def value_of_first(self, value: _T, device: torch.device) -> _T:
        """Return the value that the first process passes."""
        values = [value]
        if self.several:
            distributed.broadcast_object_list(values, 0, device=device)
        return values[0]


SINGLE_PROCESS = Processes()


def join_processes(device: str) -> tuple[Processes, torch.device]:
    """Connect to the other processes of this job; of several on GPUs each takes one.

    Raises:
        RuntimeMissingError: There is no such device, or not one for each process.
        JobError: The processes cannot connect.
    """
    where = pick_device(device)
    if world_size() == 1:
        return SINGLE_PROCESS, where
    if where.type == "cuda":
        where = _own_gpu(device)
        torch.cuda.set_device(where)
    elif where.type != "cpu":
        raise RuntimeMissingError(
            f"Device '{where.type}' cannot be shared by {world_size()} processes.",
            "Leave the launcher out, or choose --device cpu.",
        )
    return Processes(_connect(where)), where


def _own_gpu(device: str) -> torch.device:
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise RuntimeMissingError(
            f"Device '{device}' was requested by each of {world_size()} processes.",
            "Choose --device cuda: each takes a GPU of its own.",
        )
    if local >= here:
        raise RuntimeMissingError(
            f"Process {local} of this host has no GPU: the host has {here}.",
            f"Start at most {here} processes a host.",
        )
    return torch.device("cuda", local)


def _connect(device: torch.device) -> Rank:
    from accelerate import PartialState

    new = not distributed.is_initialized()
    try:
        state = PartialState(cpu=device.type == "cpu")
    except (RuntimeError, ValueError) as error:
        raise JobError(f"The processes cannot connect: {first_line(error)}.") from error
    if new and distributed.is_initialized():
        atexit.register(state.destroy_process_group)
    return Rank(state.process_index, state.num_processes)


@contextmanager
def first_process_only(processes: Processes, device: torch.device) -> Iterator[bool]:
    """Yield whether this process is the first, which works while the others wait for it.

    Raises:
        JobError: The work of the first process failed, in all others.
    """
    if not processes.first:
        yield False
        if not processes.all_agree(True, device):
            raise JobError("The first process failed.")
        return
    try:
        yield True
    except BaseException:
        processes.all_agree(False, device)
        raise
    processes.all_agree(True, device)


@contextmanager
def lost_process_reported(processes: Processes) -> Iterator[None]:
    """Turn the ways in which torch reports a process that is gone into one error.

    Raises:
        JobError: A collective failed, or the launcher ends this process because of another.
    """
    reports = processes.several and processes.first and current_thread() is main_thread()
    before = signal.signal(signal.SIGTERM, _on_sigterm) if reports else None
    try:
        yield
    except DataError as error:
        error.alone = True  # each process reads other images
        raise
    except RuntimeError as error:
        if not processes.several or not any(text in str(error) for text in _LOST):
            raise
        if reports:  # the message must not be cut short
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _lost_process() from error
    if reports:
        signal.signal(signal.SIGTERM, before)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _lost_process()


def _lost_process() -> JobError:
    error = JobError(
        "Another process of this job ended, or does not respond.",
        "See its own message; --resume goes on from the last checkpoint.",
    )
    error.late = True
    return error
