"""Pictures with matplotlib, made for a page in print: plain, legible in grey, without a window."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.errors import MissingPackageError
from rlx.run.files import writing_output

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A6D3B")
"""After Okabe and Ito: told apart with any kind of colour vision."""
_LINES = ("-", "--", "-.", ":")
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "text.parse_math": False,  # a `$` in a title or in a value is one
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.hashsalt": "rlx",  # the same picture is the same file
    "svg.fonttype": "none",
}
_PANEL = 3.4, 2.5
"""Inches of one panel."""
_DPI = 200


@contextmanager
def print_style() -> Generator[None]:
    """Draw in rlx's style within the block, whatever the user's own settings of matplotlib are.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingPackageError.of("drawing", "matplotlib", "plot") from None
    library: Any = matplotlib
    plain = {key: value for key, value in library.rcParamsDefault.items() if not key.startswith("backend")}
    with library.rc_context({**plain, **_STYLE}):
        yield


class Figure:
    """A figure with panels in a grid, and one legend for all of them; to be used within `print_style`."""

    def __init__(self, num_panels: int, *, columns: int = 3, panel: tuple[float, float] = _PANEL) -> None:
        """Lay out empty panels.

        Args:
            num_panels: at least 1.
            columns: of panels, at most.
            panel: width and height of one, in inches.
        """
        # Not pyplot: it takes as long again to import, and keeps global state.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as _Figure

        across = min(columns, num_panels)
        down = -(-num_panels // across)
        alone = num_panels == 1
        size = panel[0] * across + (1.2 if alone else 0.0), panel[1] * down + (0.6 if alone else 0.3)
        self._figure: Any = _Figure(figsize=size, dpi=_DPI)
        FigureCanvasAgg(self._figure)
        self._figure.set_layout_engine("constrained")
        grid = self._figure.subplots(down, across, squeeze=False).ravel()
        self.panels: list[Any] = list(grid[:num_panels])
        for unused in grid[num_panels:]:
            unused.remove()
        for panel_axes in self.panels:
            panel_axes.grid(axis="y")
        self._handles: dict[str, Any] = {}

    def curve(
        self,
        panel: int,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        style: int,
        label: str,
        band: tuple[NDArray[Any], NDArray[Any]] | None = None,
        each: NDArray[Any] | None = None,
        steps: bool = False,
    ) -> None:
        """Draw a line, its band, and thin lines behind it.

        Args:
            panel: which.
            x: `[points]`.
            y: `[points]`.
            style: number of the line's colour and dashes; the same for the same label in all panels.
            label: for the legend.
            band: low and high, `[points]`.
            each: `[lines, points]`.
            steps: whether each value holds until the next point.
        """
        axes, color = self.panels[panel], COLORS[style % len(COLORS)]
        dashes = _LINES[style // len(COLORS) % len(_LINES)]
        if each is not None:
            axes.plot(x, each.T, color=color, alpha=0.3, linewidth=0.7)
        if band is not None:
            axes.fill_between(x, *band, color=color, alpha=0.18, linewidth=0, step="post" if steps else None)
        drawn = "steps-post" if steps else "default"
        (line,) = axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.7, drawstyle=drawn)
        self._handles.setdefault(label, line)

    def label(self, panel: int, *, title: str = "", x: str = "", y: str = "") -> None:
        """Name a panel and its axes."""
        axes = self.panels[panel]
        axes.set(title=title, xlabel=x, ylabel=y)

    def headline(self, text: str) -> None:
        """Put a title above all panels, if there is any text."""
        if text:
            self._figure.suptitle(text, fontsize=11)

    def thousands(self, panel: int) -> None:
        """Let the horizontal axis go from 0 to the end of its curves, its numbers shown as 50k and 1M."""
        from matplotlib.ticker import EngFormatter, MaxNLocator

        axes = self.panels[panel]
        axes.margins(x=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    def legend(self, *, inside: bool = True) -> None:
        """Put the legend, where there is anything to tell apart, into the only panel or above all of them."""
        if len(self._handles) < 2:
            return
        options: dict[str, Any] = {"frameon": False, "handlelength": 1.8}
        if inside and len(self.panels) == 1 and len(self._handles) <= 6:
            self.panels[0].legend(self._handles.values(), self._handles, loc="best", **options)
            return
        if len(self.panels) == 1 and len(self._handles) > 6:
            width, height = self._figure.get_size_inches()
            self._figure.set_size_inches(width + 1.2, height)
            self._figure.legend(self._handles.values(), self._handles, loc="outside right upper", **options)
            return
        columns = min(len(self._handles), max(2, 2 * len(self.panels)))
        self._figure.legend(self._handles.values(), self._handles, loc="outside upper center", ncols=columns, **options)

    def save(self, path: Path) -> None:
        """Write the figure; the name's ending says how: `.png`, `.svg`, `.pdf`.

        Raises:
            RlxError: it cannot be written.
        """
        form = path.suffix.lower().removeprefix(".")
        with writing_output(path) as file:
            self._figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else {})


def style_of(labels: Sequence[str]) -> dict[str, int]:
    """Return the number of each label's style, in order of appearance."""
    return {label: number for number, label in enumerate(dict.fromkeys(labels))}


def whiskers(axes: Any, places: Sequence[float], values: Any, low: Any, high: Any, colors: Sequence[str]) -> None:
    """Draw points with their intervals, one below the other."""
    for place, value, least, most, color in zip(places, values, low, high, colors, strict=True):
        axes.plot([least, most], [place, place], color=color, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.plot([value], [place], marker="|", markersize=11, markeredgewidth=2, color=color)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_ylim(max(places) + 0.6, min(places) - 0.6)


def nice_limits(values: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the greatest value, apart even where they are the same."""
    low, high = float(np.min(values)), float(np.max(values))
    half = max(0.5, 1e-6 * abs(low))
    return (low, high) if high > low else (low - half, high + half)
