"""A logger for TensorRT and TensorRT for RTX that keeps their errors and warnings."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger(__name__)


def make_logger(trt: Any) -> Any:
    """Make a logger of the library's own class.

    ``errors`` and ``warnings`` hold the messages of that severity, oldest first; all messages go
    to :mod:`logging` at debug level. ``last_error`` is the newest error on one line.
    """

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            _log.debug(message)

        @property
        def last_error(self) -> str:
            return " ".join(" ".join(self.errors[-1:]).split())[:240]

    return _Logger()
