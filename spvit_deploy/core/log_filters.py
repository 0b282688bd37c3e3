"""Filters for messages of libraries that no user can act on."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Limit these loggers ("" is the root) to errors, unless ``--debug`` is given."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    if logging.root.level > logging.DEBUG:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def silenced() -> Iterator[None]:
    """Limit all loggers to errors: for imports that warn of each other."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


@contextmanager
def without_lines(mark: bytes) -> Iterator[None]:
    """Keep lines of native code that hold ``mark`` off standard error; ``--debug`` shows them.

    Native code has no loggers. Other lines are passed on at the end.
    """
    try:
        screen = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            captured.seek(0)
            for line in captured:
                if mark not in line or logging.root.level <= logging.DEBUG:
                    os.write(2, line)
