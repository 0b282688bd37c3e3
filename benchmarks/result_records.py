"""Parts of a result besides its samples. Loads no runtime: a cold start weighs it too."""

from __future__ import annotations

from pydantic import ConfigDict

from spvit_deploy.core.records import StrictModel


class Round(StrictModel):
    """One round of an artifact.

    Attributes:
        calls: samples taken.
        median: of them, seconds.
        others: fraction of all processors that other processes took.
        mhz: of the processor; None where the system does not report it.
        noisy: what disturbed it; empty for nothing.
    """

    calls: int
    median: float
    others: float = 0.0
    mhz: float | None = None
    noisy: str = ""


class LoadRecord(StrictModel):
    """What MLPerf's LoadGen reports of a run.

    Attributes:
        version: of LoadGen.
        valid: whether all of its runs were, by MLPerf's rules.
        why: the reason where they were not.
        rate: queries a second that were held (``server``), or samples a second (``offline``).
        rates: samples a second of each round of ``offline``; queries a second that each search of
            ``server`` found.
        tried: other rates, and whether they were held.
    """

    version: str
    valid: bool
    why: str = ""
    rate: float | None = None
    rates: tuple[float, ...] = ()
    tried: tuple[tuple[float, bool], ...] = ()


class Proof(StrictModel):
    """How an artifact's outputs match those of the model that it was made from.

    Attributes:
        link: what was compared with what.
        samples: images.
        max_abs: largest difference of a score.
        cosine: smallest, of two score vectors.
        top1: fraction of images with the same best class.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    link: str
    samples: int
    max_abs: float
    cosine: float
    top1: float


class DataRecord(StrictModel):
    """The data that accuracy was taken on.

    Attributes:
        spec: as ``--data`` has it.
        images: how many.
        sha256: of the pixels and labels, as the models were given them, by input size.
    """

    spec: str
    images: int
    sha256: dict[str, str]


class Start(StrictModel):
    """What a cold start took, in a process of its own.

    Attributes:
        load: seconds from a file to a session, libraries imported before.
        first: seconds of the first inference.
        idle_bytes: of memory, before the artifact was opened.
        peak_bytes: the most of it up to the end of some inferences.
        device_bytes: peak of the GPU's memory, where it is known.
    """

    load: float
    first: float
    idle_bytes: int
    peak_bytes: int
    device_bytes: int | None = None
