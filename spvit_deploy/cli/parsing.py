"""Options whose text a function reads. Loads click alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """A callback of click: what ``parse`` makes of an option's text, whose ValueError says what is
    wrong with it; None stays None.
    """

    def read(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, option) from None

    return read
