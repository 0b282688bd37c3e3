"""One page of HTML that needs nothing beside it: light and dark, for desks and phones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from spvit_deploy.core.files import write_bytes

_STYLE = """
:root{color-scheme:light dark;--back:#f8fafc;--card:#fff;--text:#1e293b;--soft:#64748b;
--line:#e2e8f0;--strong:#4338ca;--warn:#b45309;--grid:#e2e8f0}
@media(prefers-color-scheme:dark){:root{--back:#0f172a;--card:#1e293b;--text:#e2e8f0;
--soft:#94a3b8;--line:#334155;--strong:#a5b4fc;--warn:#fbbf24;--grid:#334155}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1280px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0 0 4px;letter-spacing:-.02em;line-height:1.2}
h2{font-size:18px;margin:0 0 12px}
.answer{font-size:22px;line-height:1.35;margin:10px 0 8px;font-weight:600;letter-spacing:-.01em}
.answer b{color:var(--strong)}
.sub{color:var(--soft);margin:0 0 24px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px}
.card b{display:block;font-size:28px;letter-spacing:-.02em;color:var(--strong)}
.card span{color:var(--soft);font-size:13px}section{margin-top:18px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 8px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:13px}th:first-child,td:first-child,
th:nth-child(2),td:nth-child(2){text-align:left}tr.flag td{color:var(--warn)}
.note{color:var(--soft);font-size:13px}.host td,.host th{text-align:left;white-space:normal}
.host td{overflow-wrap:anywhere}code,pre{font:13px/1.5 ui-monospace,monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
@media(max-width:600px){main{padding:20px 12px 40px}h1{font-size:22px}.answer{font-size:18px}
.card,section{padding:12px;border-radius:10px}.cards{grid-template-columns:1fr 1fr;gap:10px}
.card b{font-size:22px}}
"""
# Figures take their colours from the page, whichever it is in.
_SCRIPT = """
const dark=matchMedia('(prefers-color-scheme:dark)');
function paint(){const of=n=>getComputedStyle(document.documentElement).getPropertyValue(n).trim();
for(const plot of document.querySelectorAll('.js-plotly-plot')){const change={'font.color':
of('--text'),paper_bgcolor:'rgba(0,0,0,0)',plot_bgcolor:'rgba(0,0,0,0)'};
for(const key of Object.keys(plot.layout))if(/^[xy]axis/.test(key)){
change[key+'.gridcolor']=of('--grid');change[key+'.linecolor']=of('--grid');
change[key+'.zerolinecolor']=of('--grid')}
Plotly.relayout(plot,change)}}
paint();dark.addEventListener('change',paint);
"""


def write_page(output: Path, title: str, body: Sequence[str]) -> None:
    """Write a page that needs nothing beside it; ``body`` is HTML.

    Raises:
        StorageError: no space, or not writable.
    """
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script>"
        f"<main>{''.join(body)}</main><script>{_SCRIPT}</script></html>"
    )
    write_bytes(output, page.encode())


def card(value: str, text: str) -> str:
    """A figure, and what it is."""
    return f"<div class=card><b>{escape(value)}</b><span>{escape(text)}</span></div>"


def section(heading: str, content: str) -> str:
    """A part of the page; ``content`` is HTML."""
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def figure_section(index: int, heading: str, note: str, figure: Any) -> str:
    """A section with a figure of plotly; ``index`` is its own on the page."""
    chart = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{index}",
        config={"displayModeBar": False, "responsive": True},
    )  # fmt: skip
    return section(heading, f"<p class=note>{escape(note)}</p>{chart}")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], flags: Sequence[bool]) -> str:
    """Columns that hold something; flagged rows stand out."""
    kept = [place for place in range(len(heads)) if any(row[place] != "" for row in rows)]
    lines = ["<table><tr>" + "".join(f"<th>{escape(heads[place])}" for place in kept) + "</tr>"]
    for row, flag in zip(rows, flags, strict=True):
        cells = "".join(f"<td>{escape(str(row[place]))}" for place in kept)
        lines.append(f"<tr{' class=flag' if flag else ''}>{cells}</tr>")
    return "".join([*lines, "</table>"])
