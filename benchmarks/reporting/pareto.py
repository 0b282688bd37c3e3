"""The Pareto frontier of accuracy against latency. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def pareto_front(items: Iterable[Item], place: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """Keep the items that no other item beats in both latency (lower is better) and accuracy.

    Returns:
        Fastest first, each more accurate than all before it; of equal items only the first.
    """
    front: list[Item] = []
    for item in sorted(items, key=lambda item: (place(item)[0], -place(item)[1])):
        if not front or place(item)[1] > place(front[-1])[1]:
            front.append(item)
    return front
