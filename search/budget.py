"""Budgets as they are requested."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic.dataclasses
from pydantic import ConfigDict, Field, PositiveInt

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.lean.cost import CostTable, Unit, format_cost

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_TIMES = {"s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*(%|[KMGT]|[munµ]?s)?\s*", re.IGNORECASE)
_Name = Annotated[str, Field(min_length=1)]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Place:
    """Where a latency budget holds; None for whatever a table has."""

    runtime: _Name
    precision: _Name | None = None
    batch: PositiveInt | None = None
    threads: PositiveInt | None = None
    device: _Name | None = None


@dataclass(frozen=True)
class BudgetRequest:
    """A budget, parsed but not yet compared with a model: an amount in its unit, or a fraction.

    A latency budget has a place, and perhaps a file with a cost table.
    """

    text: str
    unit: Unit
    amount: int | None
    fraction: float | None
    place: Place | None = None
    file: Path | None = None

    def target(self, table: CostTable, least: int = 0) -> int:
        """Return the budget for the model of a table, in the table's unit.

        The cheapest plan of a search costs ``least``, where that is more than the table's.

        Raises:
            BudgetError: It is above the dense model, or below the smallest; names the range.
        """
        dense, least, unit = table.dense, max(least, table.least), self.unit
        target = round(dense * (self.fraction or 0)) if self.amount is None else self.amount
        if not least <= target <= table.most or not target:
            largest = "largest model that merges its tokens so" if table.saved else "dense model"
            where = f"above the {largest}" if target > table.most else "below the smallest model"
            amounts = (target, least, table.most)
            for digits in range(3, 12):  # as many as distinguish them
                texts = [format_cost(amount, unit, digits) for amount in amounts]
                if len(set(texts)) == len(set(amounts)):
                    break
            amount, low, high = texts
            bare = self.amount is not None and self.text.isdigit() and int(self.text) <= 100
            meant = f"; {self.text}% has its sign" if bare else ""
            raise BudgetError(
                f"Budget {self.text} is {amount}, {where}: this one takes {low} to {high}.",
                f"Ask for {max(1, math.ceil(100 * least / dense))}% to "
                f"{math.floor(100 * table.most / dense)}%{meant}.",
            )
        return target


def parse_budget(text: str, on: str = "macs") -> BudgetRequest:
    """Parse a budget such as ``50%``, ``3.2G``, ``4ms@openvino`` or ``70%@onnxruntime:FILE``.

    It is a percentage of the dense model's cost, or an amount; a latency with its place:
    ``@RUNTIME[,KEY=VALUE…][:FILE]`` with ``precision``, ``batch``, ``threads`` and ``device`` as
    keys, and a file with a cost table. Without a runtime it limits MACs, or params.

    Raises:
        BudgetError: It is neither.
    """
    number, at, where = text.partition("@")
    match = _AMOUNT.fullmatch(number)
    suffix = (match.group(2) or "").lower() if match else ""
    if not match or (suffix in _TIMES) != bool(at and suffix != "%"):
        hint = "Give 50% or 3.2G (MACs), 5M with --budget-on params, or 4ms@openvino."
        if match and suffix in _TIMES:
            hint = f"Name the runtime: {number.strip()}@onnxruntime."
        raise BudgetError(f"Budget '{text}' is not understood.", hint)
    value = float(match.group(1))
    fraction = value / 100 if suffix == "%" else None
    if at:
        place, file = _parse_place(text, where)
        amount = None if fraction is not None else round(value * _TIMES[suffix])
        return BudgetRequest(text, "ns", amount, fraction, place, file)
    amount = None if fraction is not None else round(value * _COUNTS[suffix])
    return BudgetRequest(text, "params" if on == "params" else "MACs", amount, fraction)


def with_base(text: str, base: Path) -> str:
    """Make the path of the budget's file, if it names one, relative to a folder."""
    number, at, where = text.partition("@")
    spec, colon, file = where.partition(":")
    return f"{number}@{spec}:{base / file}" if at and colon and file else text


def _parse_place(text: str, where: str) -> tuple[Place, Path | None]:
    """Parse ``openvino,precision=bf16,batch=8:latency.json``."""
    spec, colon, file = where.partition(":")
    runtime, *settings = [part.strip() for part in spec.split(",")]
    pairs = [("runtime", runtime), *(part.partition("=")[::2] for part in settings)]
    known = dict(pairs)
    if len(known) == len(pairs) and (file or not colon):
        with suppress(ValueError):
            return Place(**known), Path(file) if file else None  # type: ignore[arg-type]
    raise BudgetError(
        f"Budget '{text}' is not understood after its @.",
        "Write 4ms@openvino, 4ms@openvino:latency.json, or "
        "4ms@openvino,precision=bf16,batch=8,threads=4.",
    )


def too_small(table: CostTable, target: int, least: int, of_what: str) -> BudgetError:
    """Build the error of a budget below the least there is."""
    requested, found = (format_cost(amount, table.unit) for amount in (target, least))
    return BudgetError(
        f"A budget of {requested} is below the {found} of {of_what}.",
        f"Ask for at least {math.ceil(100 * least / table.dense)}%.",
    )


def nearest(table: CostTable, target: int, found: int) -> BudgetError:
    """Build the error of a budget that no plan comes near enough to."""
    requested, cost = (format_cost(amount, table.unit) for amount in (target, found))
    return BudgetError(
        f"The nearest plan to {requested} costs {cost}.", "Ask for a little more or less."
    )
