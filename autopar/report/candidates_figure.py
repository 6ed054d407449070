"""All settings that a search met: the time of the step against the memory of the fullest device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from autopar.report.figure import add_hover, add_memory_limit, new_figure, seconds_ticks
from autopar.report.look import MARKS
from autopar.report.picture import CandidatePoint
from autopar.units import GiB, format_bytes, format_seconds

_WIDE = 5.0
_MOST_INFEASIBLE = 400


def candidates_figure(points: Sequence[CandidatePoint], limit_bytes: int) -> figure:
    """A scatter; what does not fit is grey."""
    seconds = [point.step_s for point in points]
    is_wide = max(seconds) > _WIDE * min(seconds)
    plot = new_figure(
        380,
        x_axis_label="GiB of the fullest device",
        y_axis_label="step time",
        y_axis_type="log" if is_wide else "linear",
    )
    plot.yaxis.formatter = seconds_ticks()
    drawn = []
    for mark, (colour, marker, size, meaning) in MARKS.items():
        own = points_shown(points, mark)
        if not own:
            continue
        drawn.append(
            plot.scatter(
                "x",
                "y",
                source=_source(own, meaning),
                marker=marker,
                size=size,
                color=colour,
                line_color="#000000" if mark in ("plan", "best") else colour,
                alpha=0.5 if mark == "infeasible" else 0.9,
                name=mark,
            )
        )
    add_memory_limit(plot, limit_bytes / GiB, "x")
    add_hover(plot, drawn, [("", "@label"), ("step", "@time"), ("memory", "@size"), ("", "@mark")])
    return plot


def _source(points: Sequence[CandidatePoint], meaning: str) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "x": np.array([point.peak_bytes for point in points]) / GiB,
            "y": np.array([point.step_s for point in points]),
            "label": [point.label for point in points],
            "time": [format_seconds(point.step_s) for point in points],
            "size": [format_bytes(point.peak_bytes) for point in points],
            "mark": [meaning] * len(points),
        }
    )


def points_shown(points: Sequence[CandidatePoint], mark: str) -> list[CandidatePoint]:
    """The points with a mark; of those that do not fit, the ones that miss least."""
    own = sorted((p for p in points if p.mark == mark), key=lambda p: (p.peak_bytes, p.step_s, p.label))
    return own[:_MOST_INFEASIBLE] if mark == "infeasible" else own
