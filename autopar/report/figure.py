"""The frame that all figures of a report share: as wide as the page, zoomed by dragging, told by hovering."""

from __future__ import annotations

from typing import Any, Literal

from bokeh.models import (
    BoxZoomTool,
    CustomJSTickFormatter,
    HoverTool,
    Label,
    PanTool,
    ResetTool,
    Span,
    WheelZoomTool,
)
from bokeh.plotting import figure

from autopar.report.look import Look

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


def surface(look: Look) -> dict[str, Any]:
    """How Bokeh draws a surface that looks so."""
    return {
        "fill_color": look.colour,
        "line_color": "#ffffff",
        "hatch_pattern": look.hatch or None,
        "hatch_color": "#000000",
        "hatch_alpha": 0.35,
        "hatch_scale": 8,
    }


def add_memory_limit(plot: figure, limit: float, axis: Literal["x", "y"]) -> None:
    """A dashed line at so many GiB of an axis, and its name."""
    dimension = "height" if axis == "x" else "width"
    plot.add_layout(Span(location=limit, dimension=dimension, line_color="#000000", line_dash="dashed"))
    place: dict[str, Any] = (
        {"x": limit, "y": 6, "x_units": "data", "y_units": "screen", "x_offset": 3}
        if axis == "x"
        else {"x": 6, "y": limit, "x_units": "screen", "y_units": "data", "y_offset": 2}
    )
    plot.add_layout(Label(text="limit", text_font_size="12px", **place))


def seconds_ticks() -> CustomJSTickFormatter:
    """Axis labels in seconds, milliseconds or microseconds."""
    return CustomJSTickFormatter(code=_SECONDS)
