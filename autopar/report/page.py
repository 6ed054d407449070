"""A report as one page that needs nothing else: no network, no other file.

The figures are Bokeh's, whose library is part of the page; each stands beside a legend that uses patterns as
well as colours, a sentence, and a table of its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from bokeh.embed import json_item
from bokeh.plotting import figure
from bokeh.resources import Resources

from autopar.report import page_tables
from autopar.report.candidates_figure import candidates_figure
from autopar.report.chain_figure import chain_figure
from autopar.report.legend import chain_legend, curves_legend, looks_legend, marks_legend, sensitivity_legend
from autopar.report.look import MEMORY_LOOKS, STAGE_COLOURS
from autopar.report.memory_figures import curves_shown, memory_figure, memory_over_time_figure
from autopar.report.picture import Picture
from autopar.report.predicted import format_percent
from autopar.report.sensitivity_figure import sensitivity_figure
from autopar.report.timeline_figure import looks_shown, shown_lanes, timeline_figure
from autopar.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class _Section:
    """A heading, a sentence that says what is to be seen, a figure with its legend, and its numbers."""

    key: str
    heading: str
    sentence: str
    draw: Callable[[], figure]
    legend: str
    table: str


def report_page(picture: Picture) -> str:
    """The page as HTML."""
    sections = list(_sections(picture))
    items = [_item(section) for section in sections]
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    title = escape(picture.title)
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<style>{style}</style></head><body><main>",
        f"<h1>{title}</h1>",
        *(f"<p>{escape(text)}</p>" for text in picture.summary),
        _navigation(sections),
        '<section id="step"><h2>Where the step goes</h2>',
        page_tables.breakdown_table(picture.breakdown),
        "</section>",
        *(_section_html(section) for section in sections),
        '<section id="plan"><h2>The plan</h2>',
        f"<pre><code>{escape(picture.yaml)}</code></pre></section></main>",
        f"<script>{library}</script>",
        f'<script type="application/json" id="figures">{_json(items)}</script>',
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _sections(picture: Picture) -> Iterable[_Section]:
    prediction, timeline = picture.prediction, picture.timeline
    yield _Section(
        "timeline",
        "Timeline of the step",
        _timeline_sentence(picture),
        lambda: timeline_figure(timeline),
        looks_legend(looks_shown(timeline)),
        page_tables.timeline_table(timeline),
    )
    limit = format_bytes(prediction.memory_limit_bytes)
    share = format_percent(prediction.peak_memory_bytes / prediction.memory_limit_bytes)
    yield _Section(
        "memory",
        "Memory of each stage's devices",
        f"The fullest device holds {format_bytes(prediction.peak_memory_bytes)}, {share} of {limit}.",
        lambda: memory_figure(prediction),
        looks_legend(MEMORY_LOOKS.values()),
        page_tables.memory_table(prediction),
    )
    yield _Section(
        "memory-over-time",
        "Memory over the step",
        "What blocks keep for the backward pass comes and goes; what lives inside a block while it runs is "
        f"counted all the time. {_some('rank', len(curves_shown(picture.memory)), len(picture.memory))}",
        lambda: memory_over_time_figure(picture.memory, prediction.memory_limit_bytes, timeline.step_time_s),
        curves_legend(curves_shown(picture.memory)),
        page_tables.curves_table(picture.memory),
    )
    if len(picture.candidates) > 1:
        yield _Section(
            "candidates",
            "What was considered",
            _candidates_sentence(picture),
            lambda: candidates_figure(picture.candidates, prediction.memory_limit_bytes),
            marks_legend({point.mark for point in picture.candidates}),
            page_tables.candidates_table(picture.candidates),
        )
    yield _Section(
        "chain",
        "The model as a chain of blocks",
        _chain_sentence(picture),
        lambda: chain_figure(picture.blocks),
        chain_legend(picture.blocks),
        page_tables.chain_table(picture.blocks),
    )
    yield _Section(
        "sensitivity",
        "What would change the time",
        "Time of a sample beside the plan's own, were there more or less of one thing. "
        + "; ".join(f"{one.name}: {one.remark}" for one in picture.sensitivities)
        + ".",
        lambda: sensitivity_figure(picture.sensitivities),
        sensitivity_legend(picture.sensitivities),
        page_tables.sensitivity_table(picture.sensitivities),
    )


def _timeline_sentence(picture: Picture) -> str:
    breakdown, timeline = picture.breakdown, picture.timeline
    waiting = format_percent(breakdown.terms.bubble_s / breakdown.step_time_s)
    shown = _some("rank", len(shown_lanes(timeline)), len(timeline.lanes))
    return (
        f"One step takes {format_seconds(timeline.step_time_s)}; rank {breakdown.slowest} waits for other "
        f"stages {waiting} of it. Communication within an action is drawn at its end. {shown}"
    )


def _chain_sentence(picture: Picture) -> str:
    num_stages = len(picture.plan.stages or ((),))
    again = "; colours come again" if num_stages > len(STAGE_COLOURS) else ""
    return (
        f"{len(picture.blocks)} blocks in {num_stages} stages, to be read like text; the number in a cell is "
        f"its stage{again}."
    )


def _candidates_sentence(picture: Picture) -> str:
    fitting = sum(point.mark == "other" for point in picture.candidates)
    looked_at = sum(point.mark == "looked at" for point in picture.candidates)
    missing = sum(point.mark == "infeasible" for point in picture.candidates)
    return (
        f"{fitting} settings were solved, {looked_at} looked at with simple recipes, {missing} found not to "
        "fit; others were cut by their bounds."
    )


def _some(what: str, num_shown: int, num_all: int) -> str:
    return "" if num_shown == num_all else f"{num_shown} of {num_all} {what}s are drawn."


def _navigation(sections: Sequence[_Section]) -> str:
    named = [
        ("step", "Where the step goes"),
        *((f"{section.key}-section", section.heading) for section in sections),
        ("plan", "The plan"),
    ]
    links = "".join(f'<li><a href="#{place}">{escape(text)}</a></li>' for place, text in named)
    return f'<nav aria-label="contents"><ul>{links}</ul></nav>'


def _section_html(section: _Section) -> str:
    return (
        f'<section id="{section.key}-section"><h2>{escape(section.heading)}</h2>'
        f'<figure><figcaption id="{section.key}-caption">{escape(section.sentence)}</figcaption>'
        f"{section.legend}"
        f'<div id="{section.key}" class="plot" role="img" aria-labelledby="{section.key}-caption"></div>'
        f"</figure><details><summary>The numbers as a table</summary>{section.table}</details></section>"
    )


def _item(section: _Section) -> Any:
    plot = section.draw()
    plot.name = section.key
    return json_item(plot, section.key)


def _asset(name: str) -> str:
    return (files("autopar.report") / name).read_text(encoding="utf-8")


def _json(items: list[Any]) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(items, separators=(",", ":"), ensure_ascii=True).replace("</", "<\\/")
