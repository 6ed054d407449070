"""Options of a run that are refused before any rank waits."""

import math

import pytest

from autopar.errors import UsageError
from autopar.runtime.options import Options


@pytest.mark.parametrize("timeout_s", [0, -1.0, math.nan, math.inf, 1e12])
def test_a_timeout_that_is_no_time_is_refused(timeout_s):
    with pytest.raises(UsageError, match=rf"timeout_s={timeout_s}: a wait .* leave it out for 600"):
        Options(timeout_s=timeout_s)


def test_long_and_short_timeouts_are_taken():
    assert Options(timeout_s=1).timeout_s == 1 and Options(timeout_s=86400.0).timeout_s == 86400.0
