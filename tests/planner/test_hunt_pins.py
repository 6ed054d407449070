"""Pins drawn at random over all keys: none leads to a better plan than the free search found."""

import pytest

from tests.planner.hunt_pins import QUARRIES, excess


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(0, 12, 4))
@pytest.mark.parametrize("name", QUARRIES)
def test_no_pins_beat_the_free_plan(name: str, seed: int) -> None:
    for one in range(seed, seed + 4):
        sets, longer = excess(name, one)
        assert longer is None or longer >= -1e-9, (one, sets)
