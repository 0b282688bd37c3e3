"""The range of batches that formats with planned memory are written for: ``--profile``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.info import ExportOption

BatchProfile = tuple[int, int, int]
DEFAULT_PROFILE: BatchProfile = (1, 8, 32)


def parse_profile(text: str) -> BatchProfile:
    """Parse ``MIN,OPT,MAX``.

    Raises:
        InputError: not three rising positive integers.
    """
    try:
        return check_profile([int(part) for part in text.split(",")])
    except ValueError:
        raise _refused(text) from None


def check_profile(profile: Any) -> BatchProfile:
    """Check the smallest, usual and largest batch.

    Raises:
        InputError: not three rising positive integers.
    """
    sizes = tuple(profile)
    if len(sizes) != 3 or not 0 < sizes[0] <= sizes[1] <= sizes[2]:
        raise _refused(",".join(map(str, sizes)))
    return sizes


def profile_of(options: Mapping[str, Any]) -> BatchProfile:
    """The profile among a format's options, or the default.

    Raises:
        InputError: as :func:`check_profile`.
    """
    return check_profile(options.get("profile") or DEFAULT_PROFILE)


def _refused(found: str) -> InputError:
    return InputError(
        f"--profile {found}: expected the smallest, the usual and the largest batch.",
        "Give three rising numbers, such as 1,8,32.",
    )


PROFILE_OPTION = ExportOption(
    name="profile",
    help="Batches of an artifact with a dynamic batch: the smallest, the usual, the largest.",
    metavar="MIN,OPT,MAX",
    default=",".join(map(str, DEFAULT_PROFILE)),
    parse=parse_profile,
)
