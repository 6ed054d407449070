"""A rank that dies, hangs or raises: the others stop in time and name it."""

import threading

import pytest
from torch.distributed import HashStore

from autopar.errors import DistributedError
from autopar.runtime.watchdog import Watchdog, is_communication_error
from tests.runtime.world import Case, run_cases

TIMEOUT_S = 5.0
LATEST_S = TIMEOUT_S + 12.0


def survivors(how, options, num_ranks):
    extra = {"how": how, "timeout_s": TIMEOUT_S}
    found = run_cases(num_ranks, [Case(how, "fail", options=options, extra=extra)], timeout_s=20.0)[how]
    for result in found[:-1]:
        assert result is not None and result["kind"] == "DistributedError", found
        assert result["after_s"] < LATEST_S
    return found


def test_a_killed_rank_is_named():
    for result in survivors("kill", {"pipeline": 3}, 3)[:-1]:
        assert "rank 2 is gone" in result["message"]
        assert "stopped waiting in step 1" in result["message"]


@pytest.mark.slow
def test_a_hung_rank_is_named():
    for result in survivors("hang", {"data": 3, "zero": 3}, 3)[:-1]:
        assert "rank 2 is alive but stands still in between steps, after step 0" in result["message"]


@pytest.mark.slow
def test_an_exception_is_told_to_the_others_and_raised_as_it_is():
    found = survivors("raise", {"pipeline": 3}, 3)
    for result in found[:-1]:
        assert "rank 2 failed in step 1, forward of micro-batch 0 on stage 2" in result["message"]
        assert "ZeroDivisionError: a mistake in the model" in result["message"]
    assert found[-1]["kind"] == "ZeroDivisionError"


@pytest.mark.slow
def test_a_failure_names_the_virtual_stage_and_the_action():
    options = {"pipeline": 2, "schedule": "zbv", "virtual": 2, "num_micro_batches": 3}
    assert (
        "rank 1 failed in step 1, forward of micro-batch 0 on stage 2"
        in survivors("raise", options, 2)[0]["message"]
    )
    options = {"pipeline": 2, "schedule": "zero-bubble", "num_micro_batches": 3}
    message = survivors("raise-backward", options, 2)[0]["message"]
    assert "rank 1 failed in step 1, weight backward of micro-batch 0 on stage 1" in message
    assert "ZeroDivisionError: a mistake in the model" in message


def test_the_host_of_the_store_stays_until_every_rank_has_read_that_they_differ():
    store = HashStore()
    messages = {}

    def agree(rank, plan):
        watchdog = Watchdog(store, rank, 2, TIMEOUT_S)
        try:
            with pytest.raises(DistributedError) as raised:
                watchdog.agree("plan", plan, "plan")
            messages[rank] = str(raised.value)
        finally:
            watchdog.stop()

    host = threading.Thread(target=agree, args=(0, "one plan"))
    host.start()
    store.set("plan/1", "another plan")  # rank 1 has come, and is slow to read
    host.join(timeout=0.5)
    assert host.is_alive()
    agree(1, "another plan")
    host.join(timeout=TIMEOUT_S)
    assert set(messages) == {0, 1}
    assert all("plan of rank 1 differ from those of rank 0" in text for text in messages.values())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 7x8)"), False),
        (ZeroDivisionError("a timeout of zero"), False),
    ],
)
def test_communication_errors_are_told_apart(error, expected):
    assert is_communication_error(error) is expected
