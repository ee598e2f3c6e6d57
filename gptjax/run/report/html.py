"""The pieces of HTML that a report is made of; every text that comes in is escaped."""

import base64
from collections.abc import Sequence
from html import escape

from gptjax.run.report.charts import Picture

_CSS = """
body { margin: 0; background: #fafaf8; color: #1c1f24; font: 17px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 660px; margin: 0 auto; padding: 24px 18px 64px }
h1 { font-size: 1.7em; line-height: 1.25; margin: 0.6em 0 0.4em } h2 { font-size: 1.3em; margin: 2.2em 0 0.5em }
h3 { font-size: 1.05em; margin: 1.8em 0 0.5em }
figure { margin: 1.2em 0 1.8em } figure img { display: block; width: 100%; height: auto }
figcaption { color: #4b5563; font-size: 0.88em; line-height: 1.45 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 0.88em; line-height: 1.4 }
th, td { text-align: left; vertical-align: top; padding: 7px 12px 7px 0; border-bottom: 1px solid #e2e2dd }
th { color: #4b5563; font-weight: 600 } .number { text-align: right; white-space: nowrap }
th.number + th.number, td.number + td.number { padding-left: 14px }
td.text, blockquote { white-space: pre-wrap; overflow-wrap: anywhere }
blockquote { margin: 0.8em 0; padding: 2px 0 2px 14px; border-left: 3px solid #cbd5e1; font-size: 0.92em }
.missing { background: #fff6e5; border-left: 3px solid #d99a1c; padding: 8px 14px; margin: 1em 0; font-size: 0.92em }
pre { overflow-x: auto; background: #f1f1ed; padding: 12px; font-size: 0.78em; line-height: 1.5 }
summary { cursor: pointer; padding: 6px 0 }
@media (max-width: 640px) {
  body { font-size: 16px } .cards thead { display: none } .cards tr { display: block; padding: 10px 0 }
  .cards tr + tr { border-top: 2px solid #cbd5e1 } .cards td { display: block; border: 0; padding: 4px 0 }
  .cards td::before { content: attr(data-label); display: block; color: #4b5563; font-weight: 600 }
}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document that refers to nothing outside itself.

    Args:
        title: plain text, shown as the first heading too.
        parts: HTML of the body, in order.

    Returns:
        The text of the file.
    """
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{meta}<title>{escape(title)}</title><style>{_CSS}</style></head>"
    body = "\n".join([heading(title, level=1), *parts])
    return f'<!doctype html>\n<html lang="en">{head}\n<body><main>\n{body}\n</main></body></html>\n'


def heading(text: str, *, level: int = 2) -> str:
    """A heading of level 1 to 6."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """A sentence that stands out, on something missing."""
    return f'<p class="missing">{escape(text)}</p>'


def quotation(text: str) -> str:
    """Text as a model wrote it, line breaks kept."""
    return f"<blockquote>{escape(text)}</blockquote>"


def folded(title: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def figure(picture: Picture) -> str:
    """A picture with its caption; an image of its own, so that the names inside two SVGs cannot clash."""
    caption, data = escape(picture.caption), base64.b64encode(picture.svg).decode()
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), cards: bool = False
) -> str:
    """A table of plain text.

    Args:
        heads: the column headings.
        rows: cells by row.
        numbers: which columns to align to the right.
        cards: cells are long texts: keep their line breaks, and stack them where the screen is narrow.

    Returns:
        The HTML.
    """
    kinds = [' class="number"' if i in numbers else ' class="text"' if cards else "" for i in range(len(heads))]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, heads, strict=True))
    body = ""
    for row in rows:
        cells = zip(kinds, heads, row, strict=True)
        body += "<tr>"
        body += "".join(f'<td{kind} data-label="{escape(name)}">{escape(cell)}</td>' for kind, name, cell in cells)
        body += "</tr>\n"
    opening = '<table class="cards">' if cards else "<table>"
    return f'<div class="scroll">{opening}<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'
