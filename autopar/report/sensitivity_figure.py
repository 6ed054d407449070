"""How the time of a sample changes with links, batch and memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from autopar.report.figure import add_hover, new_figure
from autopar.report.look import LINES
from autopar.report.picture import Sensitivity


def sensitivity_figure(found: Sequence[Sensitivity]) -> figure:
    """One line for each, through the plan itself at 1."""
    plot = new_figure(
        320,
        x_axis_type="log",
        x_axis_label="times as much",
        y_axis_label="time of a sample beside the plan's",
    )
    ticks = sorted({factor for one in found for factor, _ in one.points if _is_power_of_two(factor)})
    plot.xaxis.ticker = ticks
    plot.xaxis.major_label_overrides = {factor: f"{factor:g}" for factor in ticks}
    drawn = []
    for one, (colour, dash, marker) in zip(found, LINES, strict=False):
        factors, shares = zip(*one.points, strict=True)
        source = ColumnDataSource(
            {
                "x": np.array(factors),
                "y": np.array(shares),
                "name": [one.name] * len(factors),
                "change": [f"{share - 1:+.1%}" for share in shares],
            }
        )
        plot.line("x", "y", source=source, color=colour, line_dash=dash, line_width=2)
        drawn.append(
            plot.scatter("x", "y", source=source, color=colour, marker=marker, size=10, name=one.name)
        )
    add_hover(plot, drawn, [("", "@name"), ("times as much", "@x"), ("time of a sample", "@change")])
    return plot


def _is_power_of_two(factor: float) -> bool:
    return bool(np.log2(factor) == np.round(np.log2(factor)))
