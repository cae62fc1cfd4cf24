"""Plot files: the only module that imports matplotlib, and the common style of all plots.

Figures are created as objects and written to files; there are no windows and no state shared between calls.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes as Axes
from matplotlib.colors import LogNorm as LogNorm
from matplotlib.colors import Normalize as Normalize
from matplotlib.figure import Figure as Figure
from matplotlib.image import AxesImage as AxesImage
from matplotlib.lines import Line2D as Line2D
from matplotlib.patheffects import withStroke as withStroke
from matplotlib.ticker import FuncFormatter as FuncFormatter
from matplotlib.ticker import MaxNLocator as MaxNLocator

from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.errors import WeightspaceError

#: Format -> metadata that would make files of the same data differ.
FORMATS: Mapping[str, Mapping[str, None]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
#: Okabe and Ito's palette, distinguishable with any colour vision; line styles distinguish curves in greyscale.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.8), (1.2, 1.4), (6, 1.5, 1.2, 1.5))
#: Colour maps of monotone lightness, readable in greyscale: for the depth of a surface, and the size of a number.
DEPTHS, SIZES = "YlGnBu_r", "OrRd"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "svg.hashsalt": "weightspace",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def write_picture(path: str | Path, draw: Callable[[], Figure]) -> Figure:
    """Write the figure returned by ``draw`` in the common style; the same data gives the same bytes.

    Args:
        path: ``.png``, ``.svg`` or ``.pdf``.
        draw: called once, after the path was checked.

    Returns:
        The figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: the path has another suffix.
    """
    path = Path(path)
    suffix = picture_format(path)
    with rc_context(_STYLE):
        picture, figure = io.BytesIO(), draw()
        figure.savefig(picture, format=suffix[1:], dpi=200, metadata=dict(FORMATS[suffix]))
    with replacing_file(path) as file:
        file.write(picture.getvalue())
    return figure


def signed(value: float, digits: int = 3) -> str:
    """Format a number with the given decimals, a true minus sign and no negative zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def picture_format(path: Path) -> str:
    """Return the suffix of a plot file: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        WeightspaceError: it has another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise WeightspaceError(f"A plot is a {', '.join(FORMATS)} file; found {path.name!r}.")
    return suffix
