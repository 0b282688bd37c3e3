"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", most: int = 1) -> str:
    """Return "Did you mean …?" with the ``most`` closest names, or ``otherwise``."""
    close = difflib.get_close_matches(name, list(known), n=most)
    return f"Did you mean {', '.join(close)}?" if close else otherwise


def argument_meant(error: Exception, entrypoint: Callable[..., Any], otherwise: str) -> str:
    """Suggest a name for an unknown argument of the class behind one of timm's functions.

    Other errors than of such an argument have no suggestion but ``otherwise``.
    """
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    built = getattr(sys.modules[entrypoint.__module__], found[1], None) if found else None
    if found is None or built is None:
        return otherwise
    return did_you_mean(found[2], inspect.signature(built).parameters, otherwise)
