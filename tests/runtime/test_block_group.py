"""Which blocks of a stage are gathered together."""

import pytest

from autopar.runtime.block_group import gathered_together

MB = 2**20


@pytest.mark.parametrize(
    ("sizes_mb", "expected"),
    [
        ([16, 1, 40, 40, 0, 16], [[0], [1, 2], [3], [4, 5]]),  # of large blocks, each its own
        ([4, 1, 3, 3, 3, 3, 0, 4], [[0, 1, 2], [3, 4], [5, 6, 7]]),  # of a small model, at most some quarters
        ([30, 30, 30, 0, 1, 0], [[0], [1], [2, 3, 4, 5]]),  # what is left over goes with the last
        ([0, 0], [[0, 1]]),
    ],
)
def test_small_neighbours_are_gathered_together(sizes_mb, expected):
    assert [list(part) for part in gathered_together([size * MB for size in sizes_mb])] == expected
