"""Running test bodies on real gloo processes, forked from one server, since starting up costs seconds.

A body is a function of ``bodies.py``, or of another module, as ``module:function`` (of this package, or in
full); it runs on every rank, and what it returns (or raises) on each rank comes back. The server has imported
everything and keeps the models that it has captured, so that a fork of it starts at once; it lives as long as
the tests that use it.
"""

import atexit
import gc
import importlib
import os
import pickle
import select
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
TIME_LIMIT_S = 280


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

    is_target = model.endswith(".py") or Path(model).is_dir()
    return load_target(model if is_target else str(MODELS / f"{model}.py"), dict(args))


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


class Server:
    """A process that has imported what the bodies need, and forks the ranks of one run after another."""

    def __init__(self):
        environment = dict(
            os.environ, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", TORCH_CPP_LOG_LEVEL="ERROR"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.world"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, folder):
        """Has the cases of a folder run; whatever has not come back in time is not there."""
        self.process.stdin.write(f"{folder}\n".encode())
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], TIME_LIMIT_S)
        if not ready or not self.process.stdout.readline():
            self.close()

    def close(self):
        """Ends the server; its ranks end by themselves when nobody answers."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@lru_cache(maxsize=1)
def server():
    """The one that tests share; it ends with them."""
    shared = Server()
    atexit.register(shared.close)
    return shared


def run_cases(
    num_ranks: int, cases: list[Case], timeout_s: float = 60.0, *, alone: bool = False
) -> dict[str, list[Any]]:
    """Results by case name, one per rank; a rank that raised gives the exception's text as ``Raised``.

    ``alone``: in a server of its own, whose memory nothing else has touched.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cases.pickle").write_bytes(pickle.dumps((num_ranks, cases, timeout_s, alone)))
        used = Server() if alone else server()
        used.run(folder)
        if alone:
            used.close()
        elif used.process.poll() is not None:
            server.cache_clear()
        found: dict[str, list[Any]] = {case.name: [None] * num_ranks for case in cases}
        for rank in range(num_ranks):
            path = Path(folder) / f"results-{rank}.pickle"
            for name, value in pickle.loads(path.read_bytes()).items() if path.exists() else ():
                found[name][rank] = value
        return found


def body_of(case):
    """The function of a case, and what is called before its ranks are forked."""
    module, _, name = case.body.rpartition(":")
    found = importlib.import_module(module if "." in module else f"{__package__}.{module or 'bodies'}")
    return getattr(found, name), getattr(found, "prepare", source_and_graph)


def record_models_once():
    """From now on, this rank records the construction of a model for the first of its cases only.

    A record is read and never changed. Where memory is measured, none may outlive its case.
    """
    from autopar.runtime import initialise

    initialise.record_construction = lru_cache(initialise.record_construction)


def serve_once(folder: Path) -> None:
    from autopar.verify.job import run_ranks

    num_ranks, cases, timeout_s, alone = pickle.loads((folder / "cases.pickle").read_bytes())
    unprepared = {}
    for case in cases:
        try:
            body_of(case)[1](case)
        except Exception as error:
            unprepared[case.name] = Raised(type(error).__name__, str(error), traceback.format_exc())

    def body(rank: int) -> None:
        if not alone:
            record_models_once()
        results = {}
        for case in cases:
            try:
                results[case.name] = unprepared.get(case.name) or body_of(case)[0](case)
            except Exception as error:
                results[case.name] = Raised(type(error).__name__, str(error), traceback.format_exc())
            (folder / f"results-{rank}.pickle").write_bytes(pickle.dumps(results))

    gc.collect()
    gc.freeze()  # a collection in a rank would write to, and so copy, every page of the server
    run_ranks(folder, num_ranks, timeout_s, body)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    importlib.import_module("tests.runtime.bodies")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ranks print is no answer
    for line in sys.stdin:
        serve_once(Path(line.strip()))
        answers.write("done\n")
        answers.flush()


if __name__ == "__main__":
    # Under its own name, so that what is pickled here and what the tests read are the same classes.
    importlib.import_module("tests.runtime.world").main()
