"""What a result says besides its times."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from spvit_deploy.core.records import StrictModel


class Round(StrictModel):
    """One turn of an artefact.

    Attributes:
        calls: samples taken.
        median: of them, seconds.
        others: share of all processors that other processes took.
        mhz: of the processor, where the system says.
        noisy: what disturbed it; empty for nothing.
    """

    calls: int
    median: float
    others: float = 0.0
    mhz: float | None = None
    noisy: str = ""


class LoadRecord(StrictModel):
    """What MLPerf's LoadGen says of a run.

    Attributes:
        version: of LoadGen.
        valid: whether all of its runs were, by MLPerf's rules.
        why: what spoke against it.
        rate: queries a second that were held (``server``), or samples a second (``offline``).
        rates: samples a second of each round of ``offline``; what each search of ``server`` found.
        tried: other rates, and whether they were held.
    """

    version: str
    valid: bool
    why: str = ""
    rate: float | None = None
    rates: tuple[float, ...] = ()
    tried: tuple[tuple[float, bool], ...] = ()


class Proof(BaseModel):
    """How an artefact's answers compare with the model's before it.

    Attributes:
        link: what was compared with what.
        samples: images.
        max_abs: largest difference of a score.
        cosine: smallest, of two score vectors.
        top1: share of images with the same best class.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    link: str
    samples: int
    max_abs: float
    cosine: float
    top1: float


class DataRecord(StrictModel):
    """What accuracy was taken on.

    Attributes:
        spec: as ``--data`` has it.
        images: how many.
        sha256: of the pixels and labels, as the models were given them, by input size.
    """

    spec: str
    images: int
    sha256: dict[str, str]
