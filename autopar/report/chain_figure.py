"""The model as its chain of blocks: colour and number say the stage, a pattern what flows out of a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure

from autopar.report.figure import add_hover, new_figure
from autopar.report.look import STAGE_COLOURS, WORD_HATCHES
from autopar.report.picture import BlockCell
from autopar.units import format_bytes, format_seconds

PER_ROW = 16
_TOOLTIPS = [
    ("block", "@name"),
    ("stage, rank", "@where"),
    ("flows in, out", "@flow"),
    ("parameters", "@placed"),
    ("recompute", "@recompute"),
    ("forward, backward", "@times"),
    ("kept", "@kept"),
]


def chain_figure(blocks: Sequence[BlockCell]) -> figure:
    """Rows of cells, read like text."""
    num_rows = -(-len(blocks) // PER_ROW)
    plot = new_figure(
        60 + 44 * num_rows,
        x_range=Range1d(-0.6, min(PER_ROW, len(blocks)) - 0.4),
        y_range=Range1d(num_rows - 0.4, -0.6),
    )
    plot.axis.visible = False
    plot.grid.grid_line_color = None
    source = _source(blocks)
    cells = plot.rect(
        "x",
        "y",
        width=0.92,
        height=0.86,
        source=source,
        name="blocks",
        fill_color="colour",
        line_color="#ffffff",
        hatch_pattern="hatch",
        hatch_color="#000000",
        hatch_alpha=0.3,
        hatch_scale=8,
    )
    plot.scatter("x", "y", source=source, size=20, color="#ffffff", alpha=0.9, level="glyph")
    plot.text(
        "x",
        "y",
        text="text",
        source=source,
        text_align="center",
        text_baseline="middle",
        text_font_size="12px",
        text_color="#000000",
    )
    add_hover(plot, [cells], _TOOLTIPS)
    return plot


def _source(blocks: Sequence[BlockCell]) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "x": np.arange(len(blocks)) % PER_ROW,
            "y": np.arange(len(blocks)) // PER_ROW,
            "colour": [STAGE_COLOURS[block.stage % len(STAGE_COLOURS)] for block in blocks],
            "hatch": [WORD_HATCHES.get(block.output_word, "x") or " " for block in blocks],
            "text": [str(block.stage) for block in blocks],
            "name": [block.name for block in blocks],
            "where": [f"{block.stage}, {block.rank}" for block in blocks],
            "flow": [f"{block.input_word}, {block.output_word}" for block in blocks],
            "placed": [block.placements or "replicate" for block in blocks],
            "recompute": [block.recompute for block in blocks],
            "times": [f"{format_seconds(b.forward_s)}, {format_seconds(b.backward_s)}" for b in blocks],
            "kept": [format_bytes(block.saved_bytes) for block in blocks],
        }
    )
