"""Work beside this process: what comes back, and what happens where nothing does."""

import os
import signal
import time
from pathlib import Path

import pytest

from autopar import forked
from autopar.forked import Ahead, ForkedChild, Send

PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="forks are for Linux alone")


@pytest.fixture(autouse=True)
def one_spare_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "num_spare_processors", lambda: 1)


def squared_elsewhere(position: int) -> bytes:
    """The square, and who worked it out."""
    return f"{position**2} {os.getpid()}".encode()


def wait_until_begun(ahead: Ahead, position: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ahead.is_begun(position):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def endless(position: int) -> bytes:
    """Never done."""
    time.sleep(60)
    return b""


def test_fork_does_all_that_this_process_has_not_begun() -> None:
    with Ahead(squared_elsewhere, 4, begun=(0,)) as ahead:
        wait_until_begun(ahead, 3)
        found = [ahead.take(position, PATIENCE_S) for position in range(4)]
    assert found[0] is None
    squares, makers = zip(*(made.split() for made in found[1:] if made is not None), strict=True)
    assert squares == (b"1", b"4", b"9")
    assert len(set(makers)) == 1 and int(makers[0]) != os.getpid()


def test_large_answers_arrive_whole() -> None:
    size = 3_000_000  # more than any pipe holds
    with Ahead(lambda position: bytes([position]) * size, 3) as ahead:
        wait_until_begun(ahead, 2)
        for position in (2, 0, 1):
            assert ahead.take(position, PATIENCE_S) == bytes([position]) * size


def test_piece_at_which_a_fork_is_is_waited_for() -> None:
    def slow(position: int) -> bytes:
        time.sleep(0.5)
        return b"done"

    with Ahead(slow, 1) as ahead:
        wait_until_begun(ahead, 0)
        assert ahead.take(0, PATIENCE_S) == b"done"


def test_impatient_caller_does_it_himself() -> None:
    with Ahead(endless, 1) as ahead:
        wait_until_begun(ahead, 0)
        started = time.monotonic()
        assert ahead.take(0, 0.2) is None
        assert time.monotonic() - started < PATIENCE_S


def test_begun_pieces_are_left_alone() -> None:
    def named(position: int) -> bytes:
        time.sleep(0.3)
        return b"by the fork"

    with Ahead(named, 2) as ahead:
        wait_until_begun(ahead, 0)
        assert not ahead.begin(0)  # the fork is at it
        assert ahead.begin(1)
        assert not ahead.begin(1)
        assert ahead.take(0, PATIENCE_S) == b"by the fork"
        assert ahead.take(1, PATIENCE_S) is None


def test_failing_fork_leaves_its_pieces_to_the_caller() -> None:
    def failing(position: int) -> bytes:
        raise RuntimeError("not here")

    with Ahead(failing, 2) as ahead:
        assert ahead.take(0, PATIENCE_S) is None
        assert ahead.take(1, PATIENCE_S) is None


def test_killed_fork_leaves_its_pieces_to_the_caller() -> None:
    def fatal(position: int) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with Ahead(fatal, 1) as ahead:
        assert ahead.take(0, PATIENCE_S) is None


def test_ended_fork_is_gone() -> None:
    def named(send: Send) -> None:
        send(str(os.getpid()).encode())
        time.sleep(60)

    child = ForkedChild(named)
    number = int(child.receive(PATIENCE_S) or b"0")
    os.kill(number, 0)  # it lives
    child.end()
    assert child.receive(0.0) is None and not child.is_at_work
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_fork_ends_with_its_killed_parent() -> None:
    def leaves_a_fork_behind(send: Send) -> None:
        inner = ForkedChild(lambda send: send(str(os.getpid()).encode()) or time.sleep(60))
        send(inner.receive(PATIENCE_S) or b"0")
        os.kill(os.getpid(), signal.SIGKILL)

    child = ForkedChild(leaves_a_fork_behind)
    number = int(child.receive(PATIENCE_S) or b"0")
    assert number and child.receive(PATIENCE_S) is None
    deadline = time.monotonic() + PATIENCE_S
    while is_running(number):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(number: int) -> bool:
    """Whether a process is there, and not merely waiting to be reaped by whoever took it in."""
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_fork_of_a_fork_does_not_wait_for_it() -> None:
    with Ahead(endless, 1) as ahead:
        wait_until_begun(ahead, 0)
        inner = ForkedChild(lambda send: send(repr(ahead.take(0, PATIENCE_S)).encode()))
        assert inner.receive(PATIENCE_S) == b"None"
        inner.end()


def test_without_spare_processors_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "num_spare_processors", lambda: 0)
    with Ahead(squared_elsewhere, 2) as ahead:
        assert ahead.take(0, PATIENCE_S) is None
        assert ahead.begin(1)
