"""The plots of a report, as SVG to be put into its HTML.

Drawn for both colour schemes at once: no background, lines of middle brightness, and text and axes in `currentColor`,
which the page sets. Text stays text. The same input gives the same bytes, so that a report can be compared with one
made again: ids come from a fixed salt, and neither date nor version is written. Several SVGs share a page, so each
carries its name in its ids. The only module that imports matplotlib.
Checked by tests/training/test_report.py.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from msgspec import Struct

from training.metrics import Calibration

if TYPE_CHECKING:
    from training.loop import Progress

Floats = npt.NDArray[np.floating]
Series = Mapping[str, Sequence[float]]

RATE = "Learning rate"
INK = "#010203"  # stands for currentColor, which matplotlib does not know
COLOURS = ("#3d87c9", "#df7f2c")  # 3:1 and more against the white and against the dark page
FEW_ITEMS = 20  # below, the accuracy of a bin is mostly chance
MOST_POINTS = 1500  # of a scatter: about 80 bytes each
MOST_MARKED = 40
LOG_FROM = 20  # largest over smallest, from which a loss is drawn on a logarithmic scale

STYLE: dict[Any, Any] = {  # Any: of several types, under keys that matplotlib 3.11 lists one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # units and labels are other people's words
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


class Plot(Struct, frozen=True):
    """`svg` is safe to put into HTML as it is: matplotlib escapes what it writes, and the rest is ours."""

    title: str
    svg: Markup


def curves(history: "Sequence[Progress]") -> tuple[Plot, ...]:
    """Loss, accuracy where there is one, and learning rate by epoch; none without a history."""
    if not history:
        return ()
    epochs = [each.epoch for each in history]
    drawn: dict[str, dict[str, list[float | None]]] = {
        "Loss": {
            "training": [each.loss for each in history],
            "validation": [each.validation_loss for each in history],
        },
        "Accuracy": {
            "training": [each.accuracy for each in history],
            "validation": [each.validation_accuracy for each in history],
        },
        RATE: {"at the end of the epoch": [each.learning_rate for each in history]},
    }
    return tuple(
        lines(title, epochs, known, from_zero=title == RATE)
        for title, series in drawn.items()
        if (known := complete(series))
    )


def complete(series: Mapping[str, Sequence[float | None]]) -> Series:
    """Those that have a value for every epoch."""
    known = {label: [value for value in values if value is not None] for label, values in series.items()}
    return {label: values for label, values in known.items() if len(values) == len(series[label])}


def lines(title: str, epochs: Sequence[int], series: Series, *, from_zero: bool) -> Plot:
    """One line per series; logarithmic where they span a factor of LOG_FROM, unless drawn from zero."""
    with figure(330) as drawing:
        axes = drawing.subplots()
        for (label, values), colour in zip(series.items(), COLOURS, strict=False):
            marker = "o" if len(epochs) <= MOST_MARKED else ""
            axes.plot(epochs, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3)
        low, high = min(map(min, series.values())), max(map(max, series.values()))
        if from_zero:
            axes.set_ylim(0, high * 1.08 or 1)  # one epoch can end at a rate of 0
        elif low > 0 and high >= LOG_FROM * low:
            logarithmic(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if len(series) > 1:
            axes.legend()
        return plot(drawing, title)


def logarithmic(axes: Axes) -> None:
    """Labelled 0.001, 10, 1,000: powers of ten would need mathtext, which is off."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def reliability(calibration: Calibration) -> Plot:
    """How often answers were right, by how sure they were, over the number of answers in each bin."""
    with figure(370, height=390) as drawing:
        upper, lower = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
        draw_bins(upper, calibration)
        draw_counts(lower, calibration)
        lower.set_xlabel("probability the model gave its answer")
        return plot(drawing, "Reliability")


def draw_bins(axes: Axes, calibration: Calibration) -> None:
    bins = len(calibration.items)
    left = np.arange(bins) / bins
    axes.plot((0, 1), (0, 1), color=INK, alpha=0.5, linewidth=1, linestyle="--", label="perfectly calibrated")
    for some, alpha in ((calibration.items >= FEW_ITEMS, 0.8), (calibration.items < FEW_ITEMS, 0.35)):
        shown = some & (calibration.items > 0)
        axes.bar(
            left[shown],
            calibration.accuracy[shown],
            0.9 / bins,
            align="edge",
            color=COLOURS[0],
            alpha=alpha,
            linewidth=0,
        )
    shown = calibration.items > 0
    axes.hlines(
        calibration.confidence[shown],
        left[shown],
        left[shown] + 0.9 / bins,
        COLOURS[1],
        linewidth=2,
        label="mean probability",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="fraction right")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def draw_counts(axes: Axes, calibration: Calibration) -> None:
    bins = len(calibration.items)
    centre = (np.arange(bins) + 0.45) / bins
    shown = calibration.items > 0
    axes.bar(centre[shown], calibration.items[shown], 0.9 / bins, color=INK, alpha=0.3, linewidth=0)
    for x, items in zip(centre[shown], calibration.items[shown], strict=True):
        axes.annotate(
            f"{items}" if items < 1000 else f"{items / 1000:.1f}k",
            (x, items),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
        )
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(())  # the bars carry their counts
    axes.set_ylim(0.7, calibration.items.max() * 6)
    axes.set_ylabel("answers")
    axes.grid(visible=False)


def scatter(targets: Floats, predictions: Floats, unit: str) -> Plot:
    """Predicted over true, with the line of equality; [n] each. Of very many, some evenly apart are drawn."""
    shown = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), MOST_POINTS)).astype(int))
    low = min(targets.min(), predictions.min())
    high = max(targets.max(), predictions.max())
    with figure(400, height=360) as drawing:
        axes = drawing.subplots()
        axes.plot((low, high), (low, high), color=INK, alpha=0.5, linewidth=1, linestyle="--", label="equal")
        axes.plot(
            targets[shown], predictions[shown], "o", color=COLOURS[0], alpha=0.65, markersize=4.5, markeredgewidth=0
        )
        axes.set(xlabel=f"true, {unit}", ylabel=f"predicted, {unit}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(loc="upper left")
        return plot(drawing, "Predicted against true")


def histogram(residuals: Floats, unit: str) -> Plot:
    """Of the residuals, true minus predicted, [n], with a line at none."""
    with figure(400, height=360) as drawing:
        axes = drawing.subplots()
        bins = int(np.clip(np.sqrt(len(residuals)) * 1.5, 5, 40))
        axes.hist(residuals, bins=bins, color=COLOURS[0], alpha=0.8, rwidth=0.92, linewidth=0)
        axes.axvline(0, color=INK, alpha=0.6, linewidth=1, linestyle="--")
        axes.set(xlabel=f"true minus predicted, {unit}", ylabel="test items")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        return plot(drawing, "Residuals")


@contextmanager
def figure(width: int, height: int = 230) -> Iterator[Figure]:
    """In units of the SVG, of which the page makes a pixel or a little more: a size in points is then one in pixels."""
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")


def plot(drawing: Figure, title: str) -> Plot:
    """As an element for HTML: no prologue, no size of its own, ids led by the title, which readers by ear get too."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    box = re.search(r'viewBox="[^"]+"', text)
    assert box, "bug: matplotlib wrote an SVG without a viewBox"
    inside = text[text.index("<defs>", box.end()) :]
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inside, count=1, flags=re.DOTALL)
    name = title.replace(" ", "-").lower()
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', inside))
    inside = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", inside)
    inside = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', inside).replace("url(#", f"url(#{name}-")
    inside = re.sub(r'font-family: [^;"]*; ', "", inside)  # the page's own
    inside = re.sub(r"\s*\n\s*", " ", inside.replace(INK, "currentColor"))
    whole = f'<svg {box[0]} role="img" aria-label="{title}">{inside}'
    return Plot(title, Markup(whole))  # noqa: S704  # see Plot
