"""Log filters for libraries whose messages no user can act on."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*names: str, level: int = logging.ERROR) -> Iterator[None]:
    """Limit these loggers ("" is the root) to a level, unless ``--debug`` is given."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    if logging.root.level > logging.DEBUG:
        for logger in loggers:
            logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


@contextmanager
def silenced() -> Iterator[None]:
    """Limit all loggers to errors, for imports that warn about each other."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


@contextmanager
def without_lines(mark: bytes) -> Iterator[None]:
    """Drop the lines with ``mark`` that native code writes to standard error, unless ``--debug``.

    Native code does not use loggers. Other lines are written when the block ends.
    """
    try:
        screen = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            written.seek(0)
            for line in written:
                if mark not in line or logging.root.level <= logging.DEBUG:
                    os.write(2, line)
