"""The page and the trace against the numbers that they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

pytest.importorskip("bokeh")

from autopar.cost.step_timeline import Span, SpanKind, StepTimeline, step_timeline
from autopar.report.page import report_page
from autopar.report.page_tables import idle_s
from autopar.report.picture import Picture
from autopar.report.timeline_figure import MOST_SPANS, shown_lanes, timeline_figure
from autopar.report.trace import trace_document
from tests.report.pictures import CLUSTER, LARGE, SMALL, made_up_layout, made_up_picture


@pytest.fixture(scope="module")
def picture() -> Picture:
    return made_up_picture(*SMALL)


def drawn(timeline: StepTimeline) -> Iterator[tuple[str, int, float, float]]:
    """What the figure's quads show: kind, rank, start and end."""
    for renderer in timeline_figure(timeline).renderers:
        if renderer.name and renderer.name != "communication":
            data = renderer.data_source.data
            for rank, left, right in zip(data["rank"], data["left"], data["right"], strict=True):
                yield renderer.name, int(rank), float(left), float(right)


def test_the_timeline_drawn_is_the_simulators(picture: Picture) -> None:
    played = step_timeline(made_up_layout(*SMALL), CLUSTER)
    wanted = {
        (span.kind.value, rank, span.start_s, span.end_s)
        for rank, lane in enumerate(played.lanes)
        for span in lane
    }
    assert set(drawn(picture.timeline)) == wanted


def test_the_trace_is_the_simulators(picture: Picture) -> None:
    document = json.loads(json.dumps(trace_document(picture.timeline, picture.memory)))
    spans = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == sum(map(len, picture.timeline.lanes))
    first = picture.timeline.lanes[1][0]
    one = next(event for event in spans if event["tid"] == 2)
    assert one["ts"] == pytest.approx(first.start_s * 1e6) and one["args"]["stage"] == first.stage
    assert one["dur"] == pytest.approx((first.end_s - first.start_s) * 1e6)
    held = [event["args"]["bytes"] for event in document["traceEvents"] if event["ph"] == "C"]
    assert max(held) == picture.prediction.peak_memory_bytes


def test_the_trace_is_what_the_format_wants(picture: Picture) -> None:
    events = trace_document(picture.timeline, picture.memory)["traceEvents"]
    rows = {event["tid"] for event in events if event["ph"] == "X"}
    for what in ("thread_name", "thread_sort_index"):
        assert rows <= {event["tid"] for event in events if event["name"] == what}
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    for row in rows:
        spans = sorted((e["ts"], -e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == row)
        assert all(ts >= 0 and dur <= 0 for ts, dur in spans)
        open_until = [float("inf")]
        for ts, dur in spans:  # spans of a row lie beside each other, or one inside the other
            while open_until[-1] <= ts + 1e-6:
                open_until.pop()
            assert ts - dur <= open_until[-1] + 1e-6
            open_until.append(ts - dur)
    assert all(e["cat"] and e["name"].startswith(e["cat"]) for e in events if e["ph"] == "X")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.tables += tag == "table"


def test_the_page_needs_nothing_from_elsewhere_and_says_all_in_tables(picture: Picture) -> None:
    page = report_page(picture)
    parsed = _Links()
    parsed.feed(page)
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert parsed.tables == 7  # where the step goes, and one a figure
    assert "a &lt;plan&gt; &amp; its page" in page and "# &lt;/script&gt;" in page
    head = page[: page.index("<script>")]
    for text in (
        "rank 0",
        "gradients over the data axis",
        "the free optimum",
        "does not fit",
        "weight gradient",
    ):
        assert text in head
    assert len(re.findall(r'role="img" aria-labelledby="', head)) == 6
    assert page.count("this plan") >= 2  # in the legend and in the table


def test_the_page_of_a_thousand_gpus_stays_small() -> None:
    page = report_page(made_up_picture(*LARGE))
    assert 1e6 < len(page.encode()) < 5e6


def test_two_pages_of_one_plan_show_the_same(picture: Picture) -> None:
    first, second = ([*drawn(picture.timeline)] for _ in range(2))
    assert first == second


def test_of_too_many_lanes_the_first_and_the_last_are_drawn() -> None:
    lane = tuple(Span(SpanKind.FORWARD, float(i), i + 1.0, 0.0, 0, i) for i in range(MOST_SPANS // 8))
    ranks = shown_lanes(StepTimeline((lane,) * 64, float(len(lane))))
    assert len(ranks) == 8 and ranks[0] == 0 and ranks[-1] == 63


def test_idle_time_counts_what_nothing_covers() -> None:
    lane = (
        Span(SpanKind.FORWARD, 1.0, 3.0, 0.0, 0, 0),
        Span(SpanKind.SYNCHRONISE, 2.0, 4.0, 2.0, 0),
        Span(SpanKind.UPDATE, 6.0, 7.0),
    )
    assert idle_s(lane, 8.0) == pytest.approx(1 + 2 + 1)
