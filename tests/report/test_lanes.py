import pytest

from autopar.cost.step_timeline import Span, SpanKind, StepTimeline, step_timeline
from autopar.report.lanes import lanes
from tests.report.pictures import CLUSTER, SMALL, made_up_layout

TIMELINE = StepTimeline(
    (
        (
            Span(SpanKind.FORWARD, 0.0, 4.0, 0.0, 0, 0),
            Span(SpanKind.BACKWARD, 8.0, 14.0, 0.0, 0, 0),
            Span(SpanKind.SYNCHRONISE, 14.0, 16.0, 2.0, 0),
            Span(SpanKind.UPDATE, 18.0, 20.0),
        ),
        (
            Span(SpanKind.FORWARD, 4.0, 8.0, 0.0, 1, 0),
            Span(SpanKind.INPUT_BACKWARD, 8.0, 10.0, 0.0, 1, 0),
            Span(SpanKind.WEIGHT_BACKWARD, 10.0, 12.0, 0.0, 1, 0),
            Span(SpanKind.UPDATE, 18.0, 20.0),
        ),
    ),
    20.0,
)


def test_a_character_says_what_a_rank_does_at_that_moment() -> None:
    first, second, legend = (line.plain for line in lanes(TIMELINE, 27))
    assert first == "rank 0 FFFF····BBBBBBgg··uu"
    assert second == "rank 1 ····FFFFBBWW······uu"
    assert legend == ("0 to 20.00 s: F forward, B backward, W weight gradient, g gradients, u update, · idle")


@pytest.mark.parametrize("width", [30, 80, 140])
def test_lanes_are_as_wide_as_asked_and_show_the_shares_of_the_simulator(width: int) -> None:
    timeline = step_timeline(made_up_layout(*SMALL), CLUSTER)
    shown = [line.plain for line in lanes(timeline, width)]
    assert {len(line) for line in shown[:-1]} == {width}
    forward_s = sum(s.end_s - s.start_s for s in timeline.lanes[0] if s.kind is SpanKind.FORWARD)
    room = width - len("rank 0 ")
    assert shown[0].count("F") == pytest.approx(room * forward_s / timeline.step_time_s, abs=3)


def test_of_many_ranks_the_first_and_the_last_are_shown() -> None:
    many = StepTimeline((TIMELINE.lanes[0],) * 20, 20.0)
    shown = [line.plain for line in lanes(many, 60)]
    assert len(shown) == 9 and shown[0].startswith("rank 0 ") and shown[7].startswith("rank 19 ")
    assert shown[-1].endswith("; 8 of 20 ranks")
