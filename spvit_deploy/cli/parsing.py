"""Click callbacks that parse the text of an option. Loads only click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """Return a click callback that parses an option's text; None stays None.

    Args:
        parse: Raises ValueError with a message for the user.
    """

    def read(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, option) from None

    return read
