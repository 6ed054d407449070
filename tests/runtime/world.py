"""Running test bodies on real gloo processes: one launch for many cases, since starting up costs seconds.

A body is a function of ``bodies.py``; it runs on every rank, and what it
returns (or raises) on each rank comes back. Models are captured once, before the ranks are forked.
"""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path(__file__).resolve().parent / "models"


@dataclass
class Case:
    name: str
    body: str
    model: str = "tied_gpt"
    args: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = 2
    dtype: str = "float64"
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Raised:
    kind: str
    message: str
    trace: str


@lru_cache
def load(model, args):
    from autopar.capture.target import load_target

    return load_target(model if model.endswith(".py") else str(MODELS / f"{model}.py"), dict(args))


@lru_cache
def captured(model, args, dtype):
    import torch

    from autopar.capture.capture import capture

    return capture(load(model, args), getattr(torch, dtype))


def source_and_graph(case):
    args = tuple(sorted(case.args.items()))
    return load(case.model, args), captured(case.model, args, case.dtype).at(case.micro_batch)


def check(found, num_ranks):
    """Fails where any rank raised or stayed silent."""
    for rank in range(num_ranks):
        assert not isinstance(found[rank], Raised), f"rank {rank}: {found[rank].kind}: {found[rank].trace}"
    return found


def run_cases(num_ranks: int, cases: list[Case], timeout_s: float = 60.0) -> dict[str, list[Any]]:
    """Results by case name, one per rank; a rank that raised gives the exception's text as ``Raised``."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cases.pickle").write_bytes(pickle.dumps((num_ranks, cases, timeout_s)))
        environment = dict(os.environ, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1")
        subprocess.run(
            [sys.executable, "-m", "tests.runtime.world", folder],
            cwd=ROOT,
            env=environment,
            check=False,
            timeout=280,
        )
        found: dict[str, list[Any]] = {case.name: [None] * num_ranks for case in cases}
        for rank in range(num_ranks):
            path = Path(folder) / f"results-{rank}.pickle"
            for name, value in pickle.loads(path.read_bytes()).items() if path.exists() else ():
                found[name][rank] = value
        return found


def main(folder: Path) -> None:
    import torch

    from autopar.verify.job import run_ranks

    num_ranks, cases, timeout_s = pickle.loads((folder / "cases.pickle").read_bytes())
    torch.set_num_threads(1)
    bodies = importlib.import_module("tests.runtime.bodies")
    for case in cases:
        source_and_graph(case)

    def body(rank: int) -> None:
        results = {}
        for case in cases:
            try:
                results[case.name] = getattr(bodies, case.body)(case)
            except Exception as error:
                results[case.name] = Raised(type(error).__name__, str(error), traceback.format_exc())
            (folder / f"results-{rank}.pickle").write_bytes(pickle.dumps(results))

    run_ranks(folder, num_ranks, timeout_s, body)


if __name__ == "__main__":
    # Under its own name, so that what is pickled here and what the tests read are the same classes.
    importlib.import_module("tests.runtime.world").main(Path(sys.argv[1]))
