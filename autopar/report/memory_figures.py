"""Memory of each stage's devices against the limit, by what it is for, and over the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure

from autopar.cost.memory_over_time import Curve
from autopar.cost.prediction import Prediction
from autopar.report.figure import add_hover, add_memory_limit, new_figure, seconds_ticks, surface
from autopar.report.look import LINES, MEMORY_LOOKS, STAGE_COLOURS
from autopar.report.predicted import MEMORY_PURPOSES, memory_of
from autopar.report.some_ranks import some_ranks
from autopar.units import GiB, format_bytes

_MOST_CURVES = 8
_WORTH_SHOWING_THE_LIMIT = 0.3
_DASHES = tuple(dash for _, dash, _ in LINES)


def memory_figure(prediction: Prediction) -> figure:
    """Stacked bars, one a rank of the pipeline axis."""
    stages = prediction.stages
    highest = top_of_axis(prediction.peak_memory_bytes, prediction.memory_limit_bytes)
    plot = new_figure(
        340,
        x_range=Range1d(-0.6, len(stages) - 0.4),
        y_range=Range1d(0, highest),
        x_axis_label="rank",
        y_axis_label="GiB of one device",
    )
    plot.xgrid.grid_line_color = None
    every = -(-len(stages) // 16)
    plot.xaxis.ticker = list(range(0, len(stages), every))
    floor = np.zeros(len(stages))
    drawn = []
    for purpose in MEMORY_PURPOSES:
        held = np.array([memory_of(stage.memory, purpose) for stage in stages])
        source = ColumnDataSource(
            {
                "x": np.arange(len(stages)),
                "bottom": floor,
                "top": floor + held / GiB,
                "size": [format_bytes(int(num_bytes)) for num_bytes in held],
                "what": [MEMORY_LOOKS[purpose].label] * len(stages),
                "total": [format_bytes(stage.memory.total_bytes) for stage in stages],
            }
        )
        floor = floor + held / GiB
        drawn.append(
            plot.vbar(
                x="x",
                bottom="bottom",
                top="top",
                width=0.8,
                source=source,
                name=purpose,
                **surface(MEMORY_LOOKS[purpose]),
            )
        )
    add_memory_limit(plot, prediction.memory_limit_bytes / GiB, "y")
    add_hover(plot, drawn, [("rank", "@x"), ("what", "@what"), ("size", "@size"), ("in all", "@total")])
    return plot


def top_of_axis(peak_bytes: int, limit_bytes: int) -> float:
    """GiB up to which memory is drawn: beyond the limit, unless that would leave most of the figure empty."""
    shows_limit = peak_bytes > _WORTH_SHOWING_THE_LIMIT * limit_bytes
    return 1.12 * (max(peak_bytes, limit_bytes) if shows_limit else peak_bytes) / GiB


def curves_shown(curves: Sequence[Curve]) -> tuple[int, ...]:
    """The ranks whose memory is drawn over time."""
    return some_ranks(len(curves), _MOST_CURVES)


def line_of(rank: int) -> tuple[str, str]:
    """Colour and dash of a rank's curve."""
    return STAGE_COLOURS[rank % len(STAGE_COLOURS)], _DASHES[rank % len(_DASHES)]


def memory_over_time_figure(curves: Sequence[Curve], limit_bytes: int, step_time_s: float) -> figure:
    """One stepped line a rank."""
    highest = top_of_axis(max(num_bytes for curve in curves for _, num_bytes in curve), limit_bytes)
    plot = new_figure(
        300,
        x_range=Range1d(0, step_time_s, bounds=(0, step_time_s)),
        y_range=Range1d(0, highest),
        x_axis_label="time",
        y_axis_label="GiB of one device",
    )
    plot.xaxis.formatter = seconds_ticks()
    drawn = []
    for row, rank in enumerate(curves_shown(curves)):
        colour, dash = line_of(row)
        sizes = [num_bytes for _, num_bytes in curves[rank]]
        source = ColumnDataSource(
            {
                "x": np.array([moment_s for moment_s, _ in curves[rank]]),
                "y": np.array(sizes) / GiB,
                "size": [format_bytes(num_bytes) for num_bytes in sizes],
                "rank": np.full(len(sizes), rank, dtype=np.int32),
            }
        )
        drawn.append(
            plot.step(
                "x",
                "y",
                source=source,
                mode="after",
                line_width=2,
                color=colour,
                line_dash=dash,
                name=str(rank),
            )
        )
    add_memory_limit(plot, limit_bytes / GiB, "y")
    add_hover(plot, drawn, [("rank", "@rank"), ("held", "@size")])
    return plot
