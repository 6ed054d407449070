import pytest

from autopar.profile.spread import spread_of


def test_spread_is_median_and_the_inner_eighty_percent() -> None:
    found = spread_of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found.median_s == 3.0
    assert (found.low_s, found.high_s) == pytest.approx((1.4, 4.6))
    assert found.num_repetitions == 5
    assert found.width == pytest.approx(3.2 / 3)


def test_spread_of_one_value_has_no_width() -> None:
    found = spread_of([2.0])
    assert (found.median_s, found.low_s, found.high_s, found.width) == (2.0, 2.0, 2.0, 0.0)


def test_one_disturbed_repetition_does_not_move_the_median() -> None:
    assert spread_of([1.0, 1.0, 1.0, 1.0, 90.0]).median_s == 1.0
