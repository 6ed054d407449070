"""Processes that a command has started, as /proc shows them."""

import os
import time
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Numbers of all processes that a process has started, and those have."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def ended(pids: list[int], within_s: float) -> bool:
    """Waits until all of some processes are gone, but no longer than that."""
    deadline_s = time.monotonic() + within_s
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return not any(_is_alive(pid) for pid in pids)
