"""The frame that all figures of a report share: as wide as the page, zoomed by dragging, told by hovering."""

from __future__ import annotations

from typing import Any

from bokeh.models import BoxZoomTool, CustomJSTickFormatter, HoverTool, PanTool, ResetTool, WheelZoomTool
from bokeh.plotting import figure

_SECONDS = """
const size = Math.abs(tick)
if (size === 0) return "0"
if (size >= 1) return +tick.toPrecision(4) + " s"
if (size >= 1e-3) return +(tick * 1e3).toPrecision(4) + " ms"
return +(tick * 1e6).toPrecision(4) + " µs"
"""


def new_figure(height: int, **settings: Any) -> figure:
    """An empty figure; scrolling the page does not zoom it, unless that tool is chosen."""
    box = BoxZoomTool()
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location="above",
        tools=[box, PanTool(), WheelZoomTool(), ResetTool()],
        active_drag=box,
        active_scroll=None,
        output_backend="canvas",
        **settings,
    )
    plot.toolbar.logo = None
    plot.grid.grid_line_color = "#e5e5e5"
    plot.outline_line_color = None
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_line_color = "#888888"
    return plot


def add_hover(plot: figure, renderers: list[Any], tooltips: list[tuple[str, str]]) -> None:
    """Says what is under the pointer."""
    plot.add_tools(HoverTool(renderers=renderers, tooltips=tooltips, point_policy="follow_mouse"))


def seconds_ticks() -> CustomJSTickFormatter:
    """Axis labels in seconds, milliseconds or microseconds."""
    return CustomJSTickFormatter(code=_SECONDS)
