"""OpenVINO's core, one for the whole process.

OpenVINO's CPU plugin gives the thread a stack for signal handlers, and takes it away again when its
core goes. Of two cores the second puts back the stack of the first, which may be gone: the next
signal, of a loading process that ends, then is the end of this process too.
"""

from __future__ import annotations

from functools import cache

import openvino


@cache
def openvino_core() -> openvino.Core:
    """The core of this process."""
    return openvino.Core()
