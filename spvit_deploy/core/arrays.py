"""Types of arrays and of functions on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Runner = Callable[[Array], Array]
OutputsRunner = Callable[[Array], Sequence[Array]]
