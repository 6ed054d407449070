"""A process that was started by another one ends with it, in whatever way that one has ended.

Who starts processes ends them in a ``finally``; SIGKILL, the out-of-memory killer and a crash leave it no
time for that, and what it had started would go on computing for nobody.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.5


def end_with_parent(parent: int) -> None:
    """From now on, this process is killed when the one that has started it ends.

    The kernel sees to it on Linux (prctl(2), PR_SET_PDEATHSIG), elsewhere a thread. Children of this process
    are not meant: each has to ask for itself.

    Args:
        parent: number of the process that has started this one, as it knows it; it may be gone already.
    """
    if not _asked_of_kernel():
        threading.Thread(target=_watch, args=(parent,), name="autopar-lifeline", daemon=True).start()
    if os.getppid() != parent:
        _end()


def _asked_of_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (OSError, AttributeError):  # a C library that cannot be asked
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
