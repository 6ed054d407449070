"""Processes that were started by another one end with it, even where it had no time to end them."""

import select
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A parent that leaves a child behind; the child holds the pipe open for as long as it lives.
PARENT = """
import os, sys, time
from autopar import lifeline

if sys.argv[1] == "thread":
    lifeline._asked_of_kernel = lambda: False
parent = os.getpid()
if os.fork() == 0:
    if sys.argv[1] == "late":
        while os.getppid() == parent:
            time.sleep(0.01)
    lifeline.end_with_parent(parent)
    print("waits", flush=True)
    time.sleep(100)
else:
    time.sleep(0 if sys.argv[1] == "late" else 100)
"""


@pytest.mark.parametrize("way", ["kernel", "thread", "late"])
def test_a_child_ends_with_its_killed_parent(way):
    with subprocess.Popen([sys.executable, "-c", PARENT, way], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        if way != "late":
            assert parent.stdout.readline() == b"waits\n"
            parent.kill()
        assert ended(parent.stdout, within_s=5)
        assert parent.stdout.read() == b""


def ended(pipe, within_s):
    """Whether nobody holds the other end of a pipe any more."""
    return bool(select.select([pipe], [], [], within_s)[0])
