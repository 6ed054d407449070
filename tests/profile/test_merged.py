from autopar.profile.merged import merged
from autopar.profile.spread import Spread
from tests.profile.made_up import made_up_profile


def test_a_slow_pass_does_not_move_the_medians() -> None:
    usual = {("forward", 2): Spread(1.0, 0.9, 1.2, 3)}
    slow = {("forward", 2): Spread(4.0, 3.0, 5.0, 3)}
    found = merged([usual, slow, usual])
    assert found == {("forward", 2): Spread(1.0, 0.9, 5.0, 9)}


def test_what_does_not_change_between_passes_stays() -> None:
    result = made_up_profile()
    again = merged([result, result, result])
    assert again.compute.updates[2**18][1] == result.compute.updates[2**18][1]
    assert again.compute.products["fp32", 64].median_s == result.compute.products["fp32", 64].median_s
    assert (again.machine, again.host_copy) == (result.machine, None)
