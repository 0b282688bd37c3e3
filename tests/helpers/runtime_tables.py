"""The tables of runtimes and formats in docs/runtimes.md, from the declarations.

python -m tests.helpers.runtime_tables docs/runtimes.md    # writes them again
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo
from spvit_deploy.runtimes.registry import runtimes

_PART = re.compile(r"(<!-- runtimes -->\n).*?(<!-- end -->)", re.DOTALL)


def render_tables(infos: Mapping[str, RuntimeInfo]) -> str:
    """Render a table of runtimes, and one of the formats that they write, as Markdown."""
    formats = [form for info in infos.values() for form in info.formats]
    rows = [
        ("runtime", "opens", "measured", "layers", "install"),
        *map(_runtime, infos.values()),
        (),
        ("format", "file", "precisions", "written from", "preprocessing", "own options"),
        *map(_format, formats),
    ]
    lines = [f"| {' | '.join(row)} |" if row else "" for row in rows]
    for head in (len(infos) + 2, 0):
        lines.insert(head + 1, f"|{' --- |' * len(rows[head])}")
    return "\n".join(lines)


def _runtime(info: RuntimeInfo) -> tuple[str, ...]:
    return (
        f"`{info.name}`: {info.title}",
        ", ".join(f"`{kind}`" for kind in info.kinds),
        ("by default" if info.default else "if named") + (", on a GPU" if info.needs_gpu else ""),
        "yes" if info.layers else "no",
        f"`{info.install_command}`" if info.extra else "with the package",
    )


def _format(form: FormatInfo) -> tuple[str, ...]:
    return (
        f"`{form.name}`",
        f"`{form.file}`",
        ", ".join(form.precisions),
        "ONNX" if form.from_onnx else "PyTorch",
        "yes" if form.takes_preprocessing else "no",
        ", ".join(f"`{option.option}`" for option in form.options),
    )


def replace_tables(page: str, infos: Mapping[str, RuntimeInfo]) -> str:
    """Replace the tables between the marks of a page."""
    return _PART.sub(lambda marks: f"{marks[1]}{render_tables(infos)}\n{marks[2]}", page)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(replace_tables(page.read_text(encoding="utf-8"), runtimes()), encoding="utf-8")
