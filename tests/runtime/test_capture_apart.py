"""Capturing in a child: the same model comes, the rank stays small and undisturbed, and failures are told."""

import json
import os
import subprocess
import sys

import pytest

from tests.runtime.world import MODELS, ROOT

MODEL = str(MODELS / "tied_gpt.py")

# In a process of its own: pytest has threads, and has imported what tracing imports.
SCRIPT = """
import json, os, random, sys, threading
from dataclasses import replace
import torch
from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.errors import AutoparError
from autopar.runtime import capture_apart as module
from tests.capture.same_graph import assert_same_graph

source = load_target(sys.argv[1])
cpu, dtype = torch.device("cpu"), torch.float64
read = []
reads = module.read_model
module.read_model = lambda data: read.append(len(data)) or reads(data)
found = {"traces": "torch._functorch.aot_autograd" in sys.modules}
"""


def run(body: str) -> dict:
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    code = f"{SCRIPT}\n{body}\nprint(json.dumps(found | {{'read': len(read)}}))"
    done = subprocess.run(
        [sys.executable, "-c", code, MODEL],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_a_child_captures_the_same_and_leaves_nothing_behind():
    found = run("""
before = torch.get_rng_state(), random.getstate()
apart = module.capture_apart(source, dtype, 2, cpu)
found["modules"] = [name for name in sys.modules if name.startswith(("networkx", "torch._functorch.partit"))]
found["randomness"] = torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
assert_same_graph(apart, capture(source, dtype).at(2))
try:
    os.waitpid(-1, os.WNOHANG)
    found["children"] = True
except ChildProcessError:
    found["children"] = False
""")
    assert found == {
        "traces": found["traces"],
        "modules": [],
        "randomness": True,
        "children": False,
        "read": 1,
    }


@pytest.mark.slow
def test_what_a_child_cannot_do_the_rank_does():
    found = run("""
def told(make):
    try:
        return module.capture_apart(make, dtype, 2, cpu).fingerprint
    except AutoparError as error:
        return str(error)

expected = told(source)
try:
    told(replace(source, build_model=lambda: 1 / 0))
except ZeroDivisionError:
    found["broken"] = True
parent = os.getpid()

def dies_in_a_child():
    if os.getpid() != parent:
        os.kill(os.getpid(), 9)
    return source.build_model()

found["killed"] = told(replace(source, build_model=dies_in_a_child)) == expected
drawing = random.getstate(), torch.get_rng_state()
waits = threading.Event()
thread = threading.Thread(target=waits.wait)
thread.start()
found["threads"] = told(source) == expected
found["randomness"] = random.getstate() == drawing[0] and torch.equal(torch.get_rng_state(), drawing[1])
waits.set()
thread.join()
os.fork = lambda: os.open("/nowhere", os.O_RDONLY)  # an OSError
open_files = len(os.listdir("/proc/self/fd"))
found["refused"] = told(source) == expected and len(os.listdir("/proc/self/fd")) == open_files
""")
    assert found["broken"] and found["killed"] and found["threads"] and found["randomness"]
    assert found["refused"]
    assert found["read"] == 1
