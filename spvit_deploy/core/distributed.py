"""The processes that share a training, brought together by accelerate."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed

from spvit_deploy.core.device import pick_device
from spvit_deploy.core.errors import DataError, JobError, RuntimeMissingError, first_line
from spvit_deploy.core.launcher import launched
from spvit_deploy.data.sampling import SINGLE_PROCESS, Rank


@dataclass(frozen=True)
class Processes:
    """What a process can do with the others of its job; alone, nothing.

    Attributes:
        rank: which it is, and how many there are.
    """

    rank: Rank = SINGLE_PROCESS

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.rank.world_size > 1

    @property
    def first(self) -> bool:
        """Whether it is the one that prints and writes for all."""
        return self.rank.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all processes, in place."""
        if self.several:
            distributed.all_reduce(tensor)
        return tensor

    def all_agree(self, yes: bool, device: torch.device) -> bool:
        """Whether all say yes; each waits for the last."""
        return not int(self.sum(torch.tensor(0 if yes else 1, device=device)))

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.several:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def number_of_first(self, number: int, device: torch.device) -> int:
        """The first process's number."""
        tensor = torch.tensor(number, device=device)
        self.copy_from_first([tensor])
        return int(tensor)

    def text_of_first(self, text: str, device: torch.device) -> str:
        """The first process's text."""
        content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
        size = self.number_of_first(len(content), device)
        given = content if self.first else content.new_zeros(size)
        self.copy_from_first([given])
        return bytes(given.tolist()).decode()


ALONE = Processes()


def join(device: str) -> tuple[Processes, torch.device]:
    """Meet the other processes of this job, where a launcher started several.

    Args:
        device: ``auto|cpu|cuda|cuda:N|mps``; several processes on GPUs take one each.

    Raises:
        RuntimeMissingError: no such device, or not one for each process.
        JobError: the processes do not find each other.
    """
    where = pick_device(device)
    if launched() == 1:
        return ALONE, where
    if where.type == "cuda":
        where = _own_gpu(device)
        torch.cuda.set_device(where)
    elif where.type != "cpu":
        raise RuntimeMissingError(
            f"Device '{where.type}' is one for {launched()} processes.",
            "Leave the launcher out, or choose --device cpu.",
        )
    state = _state(where)
    return Processes(Rank(state.process_index, state.num_processes)), where


def _own_gpu(device: str) -> torch.device:
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise RuntimeMissingError(
            f"Device '{device}' was asked for by each of {launched()} processes.",
            "Choose --device cuda: each takes a GPU of its own.",
        )
    if local >= here:
        raise RuntimeMissingError(
            f"Process {local} of this host has no GPU; there are {here}.",
            f"Start at most {here} processes a host.",
        )
    return torch.device("cuda", local)


def _state(device: torch.device) -> Any:
    """accelerate's record of this process; it opens the group of all."""
    from accelerate import PartialState

    fresh = not distributed.is_initialized()
    try:
        state = PartialState(cpu=device.type == "cpu")
    except (RuntimeError, ValueError) as error:
        raise JobError(f"The processes do not find each other: {first_line(error)}.") from error
    if fresh and distributed.is_initialized():
        atexit.register(_part)
    return state


def _part() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def start_accelerate(device: torch.device) -> None:
    """accelerate's trackers ask it which process this is, also where there is but one."""
    _state(device)


@contextmanager
def first_alone(processes: Processes, device: torch.device) -> Iterator[bool]:
    """Whether this process is the first, which works while the others wait for it to end well.

    Raises:
        JobError: it did not.
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
def together(processes: Processes) -> Iterator[None]:
    """Say it in one line when another process of the job is gone.

    Raises:
        JobError: a collective failed, or the launcher ends this process as it does them all.
    """
    telling = processes.several and processes.first and current_thread() is main_thread()
    before = signal.signal(signal.SIGTERM, _ended) if telling else None
    try:
        yield
    except DataError as error:
        error.alone = True  # each has images of its own
        raise
    except RuntimeError as error:
        text = str(error)
        lost = ("Connection closed", "Connection reset", "Timed out", "NCCL", "Gloo", "gloo")
        if not processes.several or not any(word in text for word in lost):
            raise
        if telling:  # what is said now must not be cut short
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _lost() from error
    if telling:
        signal.signal(signal.SIGTERM, before)


def _ended(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _lost()


def _lost() -> JobError:
    error = JobError(
        "Another process of this job ended, or does not answer.",
        "Its own message says why; --resume goes on from the last checkpoint.",
    )
    error.late = True
    return error
