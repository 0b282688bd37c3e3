"""Tables of the guide that suites write."""

from __future__ import annotations

from pathlib import Path

_END = "<!-- end of the table -->"


def replace_table(page: Path, suite: str, content: str) -> None:
    """Put ``content`` between the marks of a suite: ``<!-- table: SUITE -->`` and the end's."""
    start = f"<!-- table: {suite} -->"
    before, rest = page.read_text().split(start)
    _, end, after = rest.partition(_END)
    page.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}")
