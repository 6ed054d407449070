"""The C library's heap under training on the CPU: pages that tensors leave are kept for the next step's."""

from __future__ import annotations

import ctypes
import os
import sys

from autopar.units import MiB

# <malloc.h> of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The most that mallopt(3) takes: where the library's own, growing threshold ends.
_LARGEST_IN_HEAP_BYTES = 32 * MiB
_MOST_INT = 2**31 - 1
# With which a user says what he wants of the heap himself.
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_pages() -> bool:
    """Makes the GNU C library give back what is free now, and keep what is free from then on.

    By default it gives back what is free at the heap's end once that is more than twice the largest block
    freed (mallopt(3), M_TRIM_THRESHOLD). Whether a step's gradients lie there is chance; where they do, every
    step faults their pages in anew, which was two fifths of a step. The peak of memory is much the same,
    as what is kept is what the last step had: some 10 MiB more of 670 were measured, for blocks too large for
    the heap do not use it. Nothing is done where the environment sets the heap's thresholds, nor with another
    C library.

    Returns:
        Whether the heap keeps its pages.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in _USERS_OWN):
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None or not hasattr(libc, "malloc_trim"):
        return False
    libc.malloc_trim(0)
    # Setting either ends the library's own adjustment of both.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _MOST_INT))
