"""The heap keeps the pages that tensors leave."""

import os
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from autopar.runtime.heap import keep_pages

def train():
    kept = [torch.zeros(20 * 2**18) for _ in range(3)]  # 20 MiB each

print(keep_pages())
train()
train()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    train()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_PAGES_OF_A_ROUND = 60 * 2**20 // os.sysconf("SC_PAGE_SIZE")


def kept_and_faults(**environment: str) -> tuple[bool, int]:
    """In a process of its own, whose heap no other test has shaped."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(
        [sys.executable, "-c", _FAULTS],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.split()
    return output[0] == "True", int(output[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's heap")
def test_pages_are_faulted_in_once() -> None:
    kept, faults = kept_and_faults()
    assert kept
    assert faults < 4 * _PAGES_OF_A_ROUND  # the heap may still grow by a few blocks


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's heap")
def test_thresholds_of_the_environment_stand() -> None:
    kept, faults = kept_and_faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    assert faults > 19 * _PAGES_OF_A_ROUND
