"""Files of rows that are missing, cut short or damaged at their end: named before any work.

What `datasets` raises of one names no file, and of one that is missing nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from spvit_deploy.core.errors import DataError

_MEND = "Fetch it once more, or make it again."
# Some writers put a hash of the content behind the numbers.
_NUMBERED = re.compile(
    r"(?P<start>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:-\w+)?(?P<end>\.(parquet|arrow|tar))"
)


def require_all_parts(files: Iterable[str], where: str) -> None:
    """Refuse ``x-00000-of-00003.parquet`` without the others.

    Args:
        files: of one split.
        where: what to call the data.

    Raises:
        DataError: naming the first that is missing.
    """
    groups: dict[tuple[str, str], dict[int, re.Match[str]]] = {}
    for file in files:
        found = _NUMBERED.fullmatch(file)
        if found:
            parts = groups.setdefault((found["start"], found["total"]), {})
            parts[int(found["number"])] = found
    for (start, total), parts in groups.items():
        missing = [number for number in range(int(total)) if number not in parts]
        if missing:
            one = next(iter(parts.values()))
            path = f"{start}-{missing[0]:05d}-of-{total}{one['end']}"
            raise DataError(
                f"{where}: {path} is missing; {len(missing)} of {int(total)} files are.",
                "Fetch what is missing, or rename those that are there.",
            )


def require_readable(files: Iterable[str], where: str) -> None:
    """Refuse Parquet files of this host whose ends, which tell what they hold, cannot be read.

    Raises:
        DataError: naming the first.
    """
    from pyarrow import parquet

    for file in files:
        if file.endswith(".parquet") and Path(file).is_file():
            try:
                parquet.read_metadata(file)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None)
                said = f"{file}: {why}" if why else f"{file} is cut short or damaged"
                raise DataError(f"{where}: {said}.", _MEND) from None
