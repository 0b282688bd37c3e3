"""Libraries that talk about what no user can act on."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Let these loggers ("" is the root) speak of errors alone; with ``--debug`` they say all."""
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
    """Let no logger speak of less than errors: for imports that warn of each other."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


@contextmanager
def without_lines(mark: bytes) -> Iterator[None]:
    """Keep lines of native code that hold ``mark`` off standard error; ``--debug`` shows them.

    Native code knows no loggers. What else is written meanwhile is passed on in the end.
    """
    try:
        screen = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            heard.seek(0)
            for line in heard:
                if mark not in line or logging.root.level <= logging.DEBUG:
                    os.write(2, line)
