"""Options of TensorRT engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.runtimes.batch_profile import (
    DEFAULT_PROFILE,
    PROFILE_OPTION,
    BatchProfile,
    profile_of,
)
from spvit_deploy.runtimes.info import ExportOption

OPTIONS = (
    ExportOption(
        "gpus",
        "GPU that TensorRT for RTX builds for: sm86, sm120, … Repeat it; none has to be here.",
        kind="texts",
        flag="--gpu",
        metavar="SM",
    ),
    PROFILE_OPTION,
    ExportOption(
        "timing_cache",
        "Kernel timings that builds of TensorRT share: read, added to and written.",
        kind="file",
        metavar="FILE",
    ),
    ExportOption(
        "version_compatible",
        "Let newer versions of TensorRT, of the same major version, run the engine too.",
        kind="flag",
    ),
    ExportOption(
        "hardware_compatible",
        "Let all GPUs from Ampere on (sm80, …) run the engine, not only this one.",
        kind="flag",
    ),
    ExportOption(
        "refittable", "Let the weights of the engine be replaced without a new build.", kind="flag"
    ),
)
RTX_LACKS = {
    "timing_cache": "it times no kernels while it builds; they are compiled where the engine runs",
    "version_compatible": "it comes without the lean runtime that such engines need",
    "hardware_compatible": "it builds an engine for each GPU that is named; repeat --gpu",
}


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        gpus: compute capabilities such as ``sm86``; TensorRT for RTX builds an engine for each.
        profile: smallest, usual and largest batch of a dynamic one.
        timing_cache: file of kernel timings that builds share.
        version_compatible: newer versions of TensorRT, of the same major one, run it too.
        hardware_compatible: all GPUs from Ampere (sm80) on run it.
        refittable: its weights can be replaced.
    """

    gpus: tuple[str, ...] = ()
    profile: BatchProfile = DEFAULT_PROFILE
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False


def parse_options(options: Mapping[str, Any], precision: str) -> EngineOptions:
    """Check the options of an engine before any work; the library checks the GPUs.

    Raises:
        InputError: a profile, or a timing cache, that cannot be used.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given["profile"] = profile_of(options)
    given["gpus"] = tuple(given.get("gpus", ()))
    if "timing_cache" in given:
        from spvit_deploy.runtimes.tensorrt.timing_cache import check_file

        given["timing_cache"] = Path(given["timing_cache"])
        check_file(given["timing_cache"])
    return EngineOptions(**given)
