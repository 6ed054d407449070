"""A rank that dies, hangs or raises: the others stop in time and name it."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from torch.distributed import FileStore, HashStore

from autopar.errors import DistributedError
from autopar.runtime.meeting import Meeting
from autopar.runtime.reports import read
from autopar.runtime.watchdog import Watchdog, is_communication_error
from tests.runtime.world import ROOT, Case, run_cases

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
        assert "rank 2 is gone (no heartbeat), its last action" in result["message"]
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


def meeting(store, rank, size=2):
    return Meeting(rank, size, store, store, "this test")


@contextmanager
def watching(store, rank, size=2, timeout_s=TIMEOUT_S, **keywords):
    watchdog = Watchdog(meeting(store, rank, size), timeout_s, **keywords)
    try:
        yield watchdog
    finally:
        watchdog.stop()


def test_the_host_of_the_store_stays_until_every_rank_has_read_that_they_differ():
    store = HashStore()
    messages = {}

    def agree(rank, plan):
        with watching(store, rank) as watchdog, pytest.raises(DistributedError) as raised:
            watchdog.agree("start", {"plan": plan, "model": "the same"})
        messages[rank] = str(raised.value)

    host = threading.Thread(target=agree, args=(0, "one plan"))
    host.start()
    store.set("start/1", json.dumps({"plan": "another plan", "model": "the same"}))  # and is slow to read
    host.join(timeout=0.5)
    assert host.is_alive()
    agree(1, "another plan")
    host.join(timeout=TIMEOUT_S)
    assert set(messages) == {0, 1}
    assert all(
        text.startswith("plan of rank 1 differ from those of rank 0; give") for text in messages.values()
    )


def test_what_differs_is_named():
    store = HashStore()
    for rank, seed in ((1, "7"), (2, "0")):
        store.set(f"start/{rank}", json.dumps({"plan": "one", "model": f"model {rank}", "seed": seed}))
    for rank in (1, 2):
        store.set(f"start/read/{rank}", "")
    with (
        watching(store, 0, size=3) as watchdog,
        pytest.raises(DistributedError, match="model and seed of ranks 1, 2 differ from those of rank 0"),
    ):
        watchdog.agree("start", {"plan": "one", "model": "model 0", "seed": "0"})


def test_who_does_not_come_in_time_is_named():
    store = HashStore()
    store.set("start/1", json.dumps({"plan": "one"}))
    store.set("start/read/1", "")
    with (
        watching(store, 0, size=4, timeout_s=0.1) as watchdog,
        pytest.raises(DistributedError, match=r"ranks 2, 3 did not start within 100.0 ms"),
    ):
        watchdog.agree("start", {"plan": "one"})


def test_who_comes_after_the_store_has_gone_is_told_why():
    class Gone(HashStore):
        def check(self, keys):
            raise RuntimeError("Connection reset by peer")

    with (
        watching(Gone(), 1) as watchdog,
        pytest.raises(DistributedError, match=r"rank 1 came to compare its plan .*rank 0 has ended, or has"),
    ):
        watchdog.agree("start", {"plan": "one"})


def test_a_network_that_is_cut_ends_a_wait_all_the_same():
    is_cut = threading.Event()

    class Silent(HashStore):
        def set(self, key, value):
            if is_cut.is_set():
                time.sleep(2)
            super().set(key, value)

    with watching(Silent(), 1, interval_s=0.05, least_grace_s=0.2) as watchdog:
        began_s = time.monotonic()
        silence = pytest.raises(DistributedError, match=r"at this test does not answer: its host or the net")
        with silence, watchdog.guard("step 3"):
            is_cut.set()
            raise RuntimeError("[gloo] Timed out waiting 100ms for recv operation to complete")
        assert time.monotonic() - began_s < 1.9


def test_of_ranks_that_stand_still_the_one_that_waits_for_nobody_is_named():
    store = HashStore()
    others = [watching(store, rank, size=3, interval_s=0.02) for rank in (1, 2)]
    with others[0] as waiting, others[1] as busy, watching(store, 0, size=3, interval_s=0.02) as watchdog:
        busy.at("between steps, after step 3")
        watchdog._grace_s = 0.2
        with waiting.guard("step 4"):
            time.sleep(0.1)
            message = watchdog.explain("timed out")
    assert ": rank 2 is alive but stands still in between steps, after step 3. Look" in message


def test_who_has_closed_or_ended_is_said_to_have():
    store = HashStore()
    for end in ("has called close()", "has ended"):
        with watching(store, 1, interval_s=0.02) as other, watching(store, 0, interval_s=0.02) as watchdog:
            watchdog._grace_s = 0.2
            with other.guard("step 2"):
                pass
            other.stop(end)
            assert f": rank 1 {end}, its last action was between steps, after step 2. Look" in (
                watchdog.explain("timed out")
            )


def test_a_process_that_ends_takes_its_leave(tmp_path):
    path = str(tmp_path / "store")
    code = (
        "import sys; from torch.distributed import FileStore;"
        "from tests.runtime.test_watchdog import meeting; from autopar.runtime.watchdog import Watchdog;"
        f"w = Watchdog(meeting(FileStore({path!r}), 1), 5.0); sys.exit(3)"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=100).returncode == 3
    assert read(FileStore(path), 1).end == "has ended"


def test_ranks_that_wait_in_different_calls_are_told_apart():
    store = HashStore()
    names = ["eval_step after step 1", *["clip_grad_norm_ after step 1"] * 3]
    with ExitStack() as stack:
        ranks = [stack.enter_context(watching(store, i, size=4, interval_s=0.02)) for i in range(4)]
        for rank, name in zip(ranks, names, strict=True):
            stack.enter_context(rank.guard(name))
        ranks[0].at("eval_step after step 1, forward of micro-batch 0 on stage 0")
        ranks[2]._grace_s = 0.2
        time.sleep(0.1)
        assert (
            "ranks differ: 0 in eval_step after step 1; 1-3 in clip_grad_norm_ after step 1; every rank makes"
        ) in ranks[2].explain("timed out")


def test_machines_are_named_where_there_are_several():
    store = HashStore()
    gone = {"host": "node-b", "pulse": 7, "moves": 3, "action": "step 1", "error": "", "is_cause": False}
    store.set("heartbeat/1", json.dumps(gone))
    with watching(store, 0, interval_s=0.02, least_grace_s=0.1) as watchdog:
        assert r"rank 1 (on node-b) is gone (no heartbeat), its last action was step 1" in watchdog.explain(
            "x"
        )


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
