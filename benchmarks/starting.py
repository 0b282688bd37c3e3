"""What a fresh process needed. Loads no runtime: it is part of what the process weighs."""

from __future__ import annotations

from spvit_deploy.core.records import StrictModel


class Start(StrictModel):
    """What a fresh process needed.

    Attributes:
        load: seconds from a file to a session, libraries imported before.
        first: seconds of the first call.
        idle_bytes: of memory, before the artefact was opened.
        peak_bytes: the most of it up to the end of some calls.
        device_bytes: peak of the GPU's memory, where it is known.
    """

    load: float
    first: float
    idle_bytes: int
    peak_bytes: int
    device_bytes: int | None = None
