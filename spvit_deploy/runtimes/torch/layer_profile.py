"""Layers of a module in PyTorch, by its profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from spvit_deploy.core.log_filters import without_lines
from spvit_deploy.runtimes.base import LayerTime

_MARK = "module::"


def module_layers(module: nn.Module, images: torch.Tensor, calls: int) -> list[LayerTime]:
    """Mean seconds that each submodule takes beside those within it, once as many calls are done
    on images [B, C, H, W], which are on its device.
    """
    cuda = images.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.inference_mode():
        for _ in range(calls):
            module(images)
        # It says that it starts, that it stops, and that there is no GPU.
        with (
            without_lines(b"ProfilerHandler.cpp"),
            without_lines(b"DeviceProperties.cpp"),
            _marked(module),
            profile(activities=activities) as found,
        ):
            for _ in range(calls):
                module(images)
    own: dict[str, float] = {}
    for event in found.events() or ():
        if event.name.startswith(_MARK):
            name = event.name.removeprefix(_MARK)
            own[name] = own.get(name, 0.0) + _own_seconds(event, cuda) / calls
    kinds = {name: type(part).__name__ for name, part in module.named_modules()}
    return [LayerTime(name, kinds[name], seconds) for name, seconds in own.items() if seconds > 0]


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    """Every submodule's calls are ranges of the profile that carry its name."""
    names = {part: name for name, part in module.named_modules()}
    ranges: list[Any] = []

    def enter(part: nn.Module, _: object) -> None:
        ranges.append(record_function(f"{_MARK}{names[part]}"))
        ranges[-1].__enter__()

    def leave(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    handles = [
        h
        for part in names
        for h in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own_seconds(event: Any, cuda: bool) -> float:
    inner = sum(_total(child, cuda) for child in _marked_within(event))
    return max(0.0, _total(event, cuda) - inner)


def _total(event: Any, cuda: bool) -> float:
    return float(event.device_time_total if cuda else event.cpu_time_total) / 1e6


def _marked_within(event: Any) -> Iterator[Any]:
    """The nearest ranges of submodules."""
    for child in event.cpu_children:
        if child.name.startswith(_MARK):
            yield child
        else:
            yield from _marked_within(child)
