"""Ranks find each other, whatever an earlier attempt has left in the store, or are told who is missing."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from autopar.errors import DistributedError
from autopar.runtime.meeting import meet


@pytest.fixture
def agent():
    """The store of a torchrun agent, and what it tells each of its ranks."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    common = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    return store, [{**common, "RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"} for rank in range(3)]


def attempt(environments, timeout_s=10.0):
    """What ``meet`` gives or raises on each rank."""
    found = {}

    def rank(environment):
        try:
            found[int(environment["RANK"])] = meet(timeout_s, environment)
        except DistributedError as error:
            found[int(environment["RANK"])] = str(error)

    threads = [threading.Thread(target=rank, args=(environment,)) for environment in environments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threading.enumerate():  # in real runs the first rank of an attempt ends with it
        if thread.name == "autopar-welcome":
            thread.join()
    return [found[rank] for rank in sorted(found)]


def test_no_attempt_reads_what_another_has_left(agent):
    _, environments = agent
    first = attempt(environments)
    first[1].store.set("address", "of a process that is gone")
    assert first[2].store.get("address") == b"of a process that is gone"
    second = attempt(environments)
    assert [meeting.rank for meeting in second] == [0, 1, 2]
    assert not second[2].store.check(["address"]) and not second[2].group_store.check(["address"])
    second[0].group_store.set("address", "new")
    assert second[1].group_store.get("address") == b"new"


def test_a_rank_that_comes_where_an_attempt_is_over_is_told_so(agent):
    _, environments = agent
    attempt(environments)
    (message,) = attempt(environments[1:2], timeout_s=0.3)
    assert "rank 1 does not reach the store that torchrun keeps at 127.0.0.1:" in message
    assert "rank 0 did not come within 300.0 ms" in message


def test_the_first_rank_keeps_the_store_where_no_torchrun_does(agent):
    store, environments = agent
    del store
    for environment in environments:
        del environment["TORCHELASTIC_USE_AGENT_STORE"]
    with TCPStoreAddress() as port:
        found = attempt([{**environment, "MASTER_PORT": port} for environment in environments])
    found[2].store.set("who", "rank 2")
    assert found[0].store.get("who") == b"rank 2"


def test_a_store_that_nobody_keeps_is_an_error_that_says_where():
    with TCPStoreAddress() as port:
        environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        (message,) = attempt([environment], timeout_s=0.3)
    assert f"rank 1 does not reach the store that rank 0 keeps at 127.0.0.1:{port}" in message
    assert "rank 0 has not started there, has given up waiting" in message


def test_one_process_without_torchrun_meets_nobody():
    found = meet(1.0, {})
    assert (found.rank, found.size) == (0, 1)


class TCPStoreAddress:
    """A port that nothing else has just now."""

    def __enter__(self):
        store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=1), wait_for_workers=False)
        return str(store.port)

    def __exit__(self, *_):
        pass
