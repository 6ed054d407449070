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


_WHEN = """
import sys, torch
from dataclasses import replace
import autopar
from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.runtime import parallel, parallel_model
from tests.runtime.plans import make_plan

torch.compile = lambda body, **options: body
calls = []
parallel.keep_pages = parallel_model.keep_pages = lambda: calls.append(model is not None)
model, source = None, load_target("tests/runtime/models/tied_gpt.py", {"n_layer": 1})
plan = replace(make_plan(capture(source).at(2), num_micro_batches=1), compile=sys.argv[1] == "compiled")
model = autopar.parallelize(
    source.build_model, plan, loss=source.loss, example_batch=source.example_batch, dtype=torch.float32
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    if sys.argv[2] == "step":
        model.step(source.example_batch(2))
    else:
        batch = source.example_batch(2)
        source.loss(model(**batch), batch).backward()
    optimizer.step()
print(calls)
"""


@pytest.mark.parametrize(
    ("kind", "way", "calls"),
    [("plain", "step", "[False]"), ("compiled", "step", "[True]"), ("compiled", "driven", "[True]")],
)
def test_pages_of_a_compiled_model_are_kept_once_it_is_compiled(kind: str, way: str, calls: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WHEN, kind, way], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.strip() == calls, done.stderr
