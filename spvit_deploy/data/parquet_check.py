"""Checks for files of rows that are missing, truncated or damaged, before any work.

The errors of `datasets` do not name a damaged file, and a missing one raises none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from spvit_deploy.core.errors import DataError

# Some writers append a hash of the content to the numbers.
_NUMBERED = re.compile(
    r"(?P<start>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:-\w+)?(?P<end>\.(parquet|arrow|tar))"
)


def require_all_files(files: Iterable[str], where: str) -> None:
    """Refuse ``x-00000-of-00003.parquet`` without the others.

    Args:
        files: Paths of one split.
        where: Name of the data in messages.

    Raises:
        DataError: naming the first missing file.
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
            end = next(iter(parts.values()))["end"]
            raise DataError(
                f"{where}: {start}-{missing[0]:05d}-of-{total}{end} is missing; {len(missing)} of "
                f"{int(total)} files are.",
                "Download what is missing, or rename the others.",
            )


def require_readable(files: Iterable[str], where: str) -> None:
    """Refuse local Parquet files whose footers, which describe their content, cannot be read.

    Raises:
        DataError: naming the first.
    """
    from pyarrow import parquet

    for file in files:
        if file.endswith(".parquet") and Path(file).is_file():
            try:
                parquet.read_metadata(file)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None)
                text = f"{file}: {reason}" if reason else f"{file} is truncated or damaged"
                raise DataError(f"{where}: {text}.", "Download or create it again.") from None
