"""Chains of one block, and their interleaved times, each with its spread.

A chain has copies of a block, norms and additions included because runtimes fuse across them, each
with weights of its own, as in a model.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.records import StrictModel
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.timing import Schedule, TimedCall, sample, time_interleaved

# Copies in a chain: more than the caches next to a core hold, of all but the smallest models.
DEPTH = 3
ROUNDS, OFTEN = 10, 4
_BURST, _PAUSE = 0.1, 0.08
_INACTIVE = ("Dropout", "DropPath", "Identity")


@dataclass(frozen=True)
class BlockCall:
    """The arguments of a block in a run of its model, of which ``x`` is the first.

    Attributes:
        series: Whether its output has the shape of ``x``.
        free: Whether only the first dimension of ``x`` is the batch.
    """

    x: Tensor
    rest: tuple[Any, ...]
    named: dict[str, Any]
    series: bool
    free: bool
    batch: int

    @property
    def size(self) -> tuple[int, int, int]:
        """The input of a chain for one image, as (channels, height, width)."""
        sizes = tuple(self.x.shape[1:])
        if self.free and len(sizes) == 3:
            return (sizes[0], sizes[1], sizes[2])
        return (1, self.x.numel() // self.batch // sizes[-1], sizes[-1])


class Chain(nn.Module):
    """Copies of a block, one after another; side by side where they cannot follow each other, or
    only the first tokens of each are read.
    """

    def __init__(self, block: nn.Module, call: BlockCall, reads: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(shaken_model(block) for _ in range(DEPTH))
        self.call, self.reads = call, reads

    def forward(self, images: Tensor) -> Tensor:
        """[B, *size] → mean tokens [B, C]."""
        call, batch = self.call, images.shape[0]
        shape = (batch, *call.x.shape[1:]) if call.free else tuple(call.x.shape)
        x = images.reshape(shape)
        if call.series and self.reads is None:
            for block in self.blocks:
                x = first_of(block(x, *call.rest, **call.named))
            return self._tokens(x, batch).mean(1)
        given = [first_of(block(x, *call.rest, **call.named)) for block in self.blocks]
        read = [self._tokens(y, batch)[:, : self.reads] for y in given]
        return torch.stack([tokens.mean(1) for tokens in read]).sum(0)

    def _tokens(self, x: Tensor, batch: int) -> Tensor:
        plain = self.call.free and x.ndim == 3
        return x if plain else x.reshape(batch, -1, x.shape[-1])


@dataclass(frozen=True)
class Probe:
    """A block to time, with its choice made.

    Attributes:
        reads: Number of its first output tokens that are used; None for all.
    """

    block: nn.Module
    call: BlockCall
    reads: int | None = None

    def chain(self) -> Chain:
        """Build its chain, in evaluation mode."""
        return Chain(self.block, self.call, self.reads).eval()


@torch.no_grad()
def shaken_model(model: nn.Module) -> nn.Module:
    """Copy a model with noise in its weights, to evaluate: optimizers drop zeros and ones."""
    shaken = copy.deepcopy(model).eval()
    for parameter in shaken.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return shaken


def watch_blocks(model: nn.Module, sites: Sequence[BlockSite], batch: int) -> dict[str, BlockCall]:
    """Record the arguments of every block; those for one more image show what is the batch.

    Raises:
        ModelError: A block does not run on its own.
    """
    few, more = _calls(model, sites, batch), _calls(model, sites, batch + 1)
    found = {}
    for site in sites:
        if site.path not in few:
            raise ModelError(
                f"{site.path} does not run as a block of its own, so its latency cannot be taken.",
                "Ask for a budget in MACs.",
            )
        (x, rest, named, given), (y, others, other_named, _) = few[site.path], more[site.path]
        pairs = zip(_tensors(rest, named), _tensors(others, other_named), strict=True)
        fixed = [a.shape == b.shape for a, b in pairs]
        scales = (x.shape[0], y.shape[0]) == (batch, batch + 1) and x.shape[1:] == y.shape[1:]
        series = given.shape == x.shape
        found[site.path] = BlockCall(x, rest, named, series, scales and all(fixed), batch)
    return found


_Seen = tuple[Tensor, tuple[Any, ...], dict[str, Any], Tensor]


def _calls(model: nn.Module, sites: Sequence[BlockSite], batch: int) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}

    def note(path: str, _: Any, args: tuple[Any, ...], named: dict[str, Any], given: Any) -> None:
        if args and isinstance(args[0], Tensor):
            seen[path] = (args[0], args[1:], named, first_of(given))

    handles = [
        site.block.register_forward_hook(partial(note, site.path), with_kwargs=True)
        for site in sites
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(batch, *input_size(model)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _tensors(rest: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in (*rest, *named.values()) if isinstance(value, Tensor)]


def first_of(given: Any) -> Tensor:
    """Return a block's output [batch, ...], or the first of several."""
    found: Tensor = given[0] if isinstance(given, (tuple, list)) else given
    return found


def signature(probe: Probe) -> str:
    """Return a hash that is equal for blocks that differ in their weights only."""
    call = probe.call
    shapes = [list(tensor.shape) for tensor in (call.x, *_tensors(call.rest, call.named))]
    others = [v for v in (*call.rest, *call.named.values()) if _is_plain(v)]
    parts = [repr((shapes, others, call.series, call.free, probe.reads)), *_described(probe.block)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _described(block: nn.Module) -> Iterator[str]:
    for name, module in block.named_modules():
        kind = type(module).__name__
        if kind in _INACTIVE:
            continue
        held = [*module._parameters.items(), *module._buffers.items()]
        shapes = sorted((key, list(t.shape)) for key, t in held if t is not None)
        plain = sorted(
            (key, repr(value))
            for key, value in vars(module).items()
            if not key.startswith("_") and key != "training" and _is_plain(value)
        )
        yield repr((name, kind, shapes, plain))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


class Timing(StrictModel):
    """Seconds of an inference.

    Attributes:
        seconds: lower quartile of the medians of bursts: what else runs on a host only adds.
        low, high: 5% and 95% of the medians.
    """

    seconds: float = Field(gt=0)
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Of the bursts, as a fraction of the time."""
        return (self.high - self.low) / self.seconds

    def scaled(self, factor: float) -> Timing:
        """Multiply all of it by a factor."""
        return Timing(seconds=self.seconds * factor, low=self.low * factor, high=self.high * factor)


def time_files(
    files: Mapping[str, Path],
    open_file: Callable[[Path], Session],
    batch: int,
    rounds: int = ROUNDS,
    often: Collection[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Timing], Session]:
    """Time every file in short interleaved bursts.

    Args:
        often: names that get :data:`OFTEN` bursts a round, since much is derived from them.
        note: called with each name before its burst.

    Returns:
        The times, and a closed session, for what it reports of the runtime.
    """
    sessions = {name: open_file(path) for name, path in files.items()}
    calls = {name: _warm_call(session, batch) for name, session in sessions.items()}
    schedule = Schedule(rounds, _BURST, _PAUSE)
    bursts = time_interleaved(calls, schedule, dict.fromkeys(often, OFTEN), note)
    calls.clear()
    for session in sessions.values():
        session.close()
    return {name: _summarized(found) for name, found in bursts.items()}, session


def _summarized(bursts: list[list[float]]) -> Timing:
    medians = [median(burst) for burst in bursts]
    quartile, low, high = (percentile(medians, percent) for percent in (25, 5, 95))
    return Timing(seconds=quartile, low=low, high=high)


def _warm_call(session: Session, batch: int) -> TimedCall:
    call = session.prepare(images_for(session, batch, 0))
    sample(call, 0)
    return call
