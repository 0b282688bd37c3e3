"""Block times: where the time of an inference goes, from layers as each runtime counts them.

Exported graphs name their nodes after the modules that they come from, so the layers of a lean and
a dense model, in whichever runtime, meet under the same blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spvit_deploy.core.records import StrictModel
from spvit_deploy.lean.block_costs import BlockCost
from spvit_deploy.runtimes.base import LayerTime

# What is no operation in the place of attention.
BESIDE = ("mlp", "norms and additions", "stem and head", "reformats")
# A part of a block, and what it is: an operation as plans name it, or one of those.
Place = tuple[str, str]
_REST: Place = ("", "stem and head")
_BETWEEN: Place = ("", "reformats")
# Names that runtimes give to what they put between layers.
_REFORMATS = ("reorder", "reformat", "convert", "transpose_token", "copy node")


class BlockTime(StrictModel):
    """A part of a block, in one shape for all runtimes.

    Attributes:
        block: ``blocks.3.attn``, ``blocks.3.mlp``, ``blocks.3``; empty for what is in no block.
        kind: an operation in the place of attention, as plans name it (those of other packages
            included), ``mlp``, ``norms and additions``, ``stem and head``, or ``reformats``.
        seconds: mean of an inference, taken with the runtime's profiler on, which slows it.
        macs: of one image; 0 where unknown or none.
        layers: how many of the runtime's layers it is.
    """

    block: str
    kind: str
    seconds: float
    macs: int = 0
    layers: int = 1


def by_block(layers: Sequence[LayerTime], blocks: Sequence[BlockCost]) -> tuple[BlockTime, ...]:
    """Sum layers, which are in the order in which they run, by the part of the block that they
    belong to; all are stem and head of a model without known blocks.
    """
    places: dict[str, str] = {}
    macs: dict[str, int] = {}
    for block in blocks:
        places[block.attention_path] = block.kind.value
        places[block.mlp_path] = "mlp"
        places[block.path] = "norms and additions"
        macs |= {block.attention_path: block.attention_macs, block.mlp_path: block.mlp_macs}
    own = _adopted([_place(layer, places) for layer in layers], places)
    found: dict[Place, list[float]] = {place: [] for place in places.items()}
    for layer, place in zip(layers, own, strict=True):
        found.setdefault(place, []).append(layer.seconds)
    return tuple(
        BlockTime(
            block=path, kind=kind, seconds=sum(times), layers=len(times), macs=macs.get(path, 0)
        )
        for (path, kind), times in found.items()
        if times
    )


def _place(layer: LayerTime, places: dict[str, str]) -> Place | None:
    """Find the longest path of a block's part that the layer's name begins with; None for a name
    that is not a path, as of what a runtime has fused.
    """
    name = layer.name.replace("/", ".")
    fitting = [path for path in places if name == path or name.startswith(f"{path}.")]
    if fitting:
        path = max(fitting, key=len)
        return path, places[path]
    if any(text.lower().startswith(_REFORMATS) for text in (layer.op, layer.name)):
        return _BETWEEN
    return _REST if "." in name or not layer.op else None


def _adopted(found: Sequence[Place | None], places: dict[str, str]) -> list[Place]:
    """Assign nameless layers by their neighbours: within a part to it, between two parts to the
    block that begins.
    """
    own: list[Place] = []
    for index, place in enumerate(found):
        if place is None:
            before = next((x for x in reversed(own) if x != _BETWEEN), _REST)
            after = next((x for x in found[index:] if x not in (None, _BETWEEN)), None) or _REST
            place = before if before == after else _whole(after[0], places)
        own.append(place)
    return own


def _whole(path: str, places: dict[str, str]) -> Place:
    whole = path if places.get(path) == "norms and additions" else path.rpartition(".")[0]
    return (whole, "norms and additions") if whole in places else _REST


def total(blocks: Iterable[BlockTime]) -> float:
    """Sum the seconds of an inference by the profiler."""
    return sum(block.seconds for block in blocks)


@dataclass(frozen=True)
class Gain:
    """What parts became, from dense to lean, by the kind that took the dense ones' place: seconds
    of an inference, MACs of an image.
    """

    kind: str
    count: int
    dense: float
    lean: float
    dense_macs: int
    lean_macs: int

    @property
    def promised(self) -> float | None:
        """Ratio of the MACs, dense over lean; None where there are none left."""
        return self.dense_macs / self.lean_macs if self.lean_macs else None

    @property
    def achieved(self) -> float | None:
        """Ratio of the seconds, dense over lean; None where there are none left."""
        return self.dense / self.lean if self.lean else None


def gains(dense: Sequence[BlockTime], lean: Sequence[BlockTime]) -> list[Gain]:
    """Compare each kind of part of the lean model with the same blocks of the dense one; last, as
    ``left out``, parts of which the lean graph has no layer, as of a skipped attention.
    """
    before = {block.block or block.kind: block for block in dense}
    rows: dict[str, tuple[list[BlockTime], list[BlockTime]]] = {}
    for block in lean:
        olds, news = rows.setdefault(block.kind, ([], []))
        other = before.get(block.block) or before.get(block.kind)
        olds += [other] if other is not None else []
        news.append(block)
    left = {block.block for block in lean}
    gone = [block for block in dense if block.block and block.block not in left]
    found = [_gain(kind, len(news), olds, news) for kind, (olds, news) in rows.items()]
    return [*found, _gain("left out", len(gone), gone, [])] if gone else found


def _gain(kind: str, count: int, olds: Sequence[BlockTime], news: Sequence[BlockTime]) -> Gain:
    macs = [sum(block.macs for block in blocks) for blocks in (olds, news)]
    return Gain(kind, count, total(olds), total(news), *macs)
