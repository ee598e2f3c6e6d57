"""The house style of every picture, and pictures as the text of SVG files."""

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

_WIDTH = 5.2  # inches; shown at up to 660 CSS pixels, so 9.5 points are 17 pixels there and 9 on a phone
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#c8590b", "#2c7a4b", "#6b7280"
_STYLE: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "gptjax",
}


class Picture(NamedTuple):
    """A drawing, as the text of an SVG file, with its caption."""

    svg: bytes
    caption: str


def styled(draw: Callable[..., _T]) -> Callable[..., _T]:
    """A function that draws, made to do so in the house style."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> _T:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def blank(rows: int = 1, columns: int = 1, *, height: float = 2.9) -> tuple[Any, list[Any]]:
    """A figure of the house's width with its axes in reading order; height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def picture(figure: Any, caption: str) -> Picture:
    """The figure as SVG, the same bytes each time."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(file.getvalue(), caption)
