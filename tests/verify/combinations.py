"""The product of what a plan can say about a run, on the example models in toy sizes.

``python -m tests.verify.combinations`` runs all of it and prints how many combinations equal one process, and
the worst error; the tests run a sample.
"""

import argparse
import random
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from autopar.errors import PlanError
from autopar.lower.resolve import resolve
from tests.lower.models import EXAMPLES, MODELS
from tests.runtime.bodies import verify
from tests.runtime.plans import make_plan
from tests.runtime.world import Case, Raised, run_cases, source_and_graph

TOY = {
    "gpt": {"n_layer": 3, "n_embd": 16, "n_head": 4, "seq": 8, "vocab": 32},
    "resnet": {"depth": 18, "width": 4, "image_size": 32, "num_classes": 4},
    "perception": {"width": 4, "hidden": 16, "num_frames": 2, "image_size": 32, "num_convs": 4},
    "recommender": {"num_users": 16, "num_items": 8, "dim": 8},
}
MESHES = {
    4: ((4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 4, 1), (1, 1, 4)),
    8: ((2, 2, 2), (4, 2, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (1, 2, 4), (1, 8, 1), (2, 1, 4)),
}
SCHEDULES = (("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("zero-bubble", 1), ("zbv", 2))
ZERO = (0, 1, 2, 3)
RECOMPUTE = ("none", "selective", "full")
TOLERANCE = 1e-9
REFUSED = "refused"
# Most in float64, where equal means equal.
DTYPES = (*["float64"] * 8, "bfloat16", "float16")
OFFLOADS = ("none", "none", "none", "activations", "optimizer", "parameters", "optimizer,activations")
ORDERS = (None, None, "data pipeline tensor", "tensor data pipeline", "pipeline tensor data")


def combinations(num_ranks):
    """Every combination of model, mesh, schedule, ZeRO level and recompute; the other axes are drawn."""
    axes = product(TOY, MESHES[num_ranks], SCHEDULES, ZERO, RECOMPUTE)
    return [combination(f"{num_ranks}-{number}", *values) for number, values in enumerate(axes)]


def sample(num_ranks, count, seed=0, models=tuple(TOY), num_steps=2):
    """Some of them, the same ones every time."""
    possible = [case for case in combinations(num_ranks) if Path(case.model).stem in models]
    found = random.Random(f"{seed} {num_ranks}").sample(possible, count)
    return [replace(case, options={**case.options, "num_steps": num_steps}) for case in found]


def combination(name, model, mesh, schedule, zero, recompute):
    pick = random.Random(f"other axes {name}")
    pipeline, data, tensor = mesh
    num_stages = pipeline * schedule[1]
    offload = pick.choice(OFFLOADS)
    if data > 1 and zero and pick.random() < 0.2:
        zero = tuple(pick.choice(ZERO) for _ in range(num_stages))
    options = {
        "pipeline": pipeline,
        "data": data,
        "tensor": tensor,
        "schedule": schedule[0],
        "virtual": schedule[1],
        "zero": zero,
        "recompute": recompute,
        "num_micro_batches": pick.randint(1, 4),
        "order": pick.choice(ORDERS),
        "shard_group": pick.choice((None, 2)) if data > 2 else None,
        "offload": "none" if offload == "parameters" and zero != 3 else offload,
        "num_steps": 2,
    }
    if tensor > 1:
        options["activations"] = pick.choice(("replicate", "sequence"))
        options["lines"] = lines_for(model, pick.random() < 0.5)
    return Case(
        name,
        "tests.verify.combinations:compare",
        model=str(EXAMPLES / f"{model}.py"),
        args=TOY[model],
        dtype=pick.choice(DTYPES),
        options=options,
    )


def lines_for(model, vocab):
    words = {**(MODELS[model].vocab if vocab else {}), **MODELS[model].tensor}
    return tuple(words.items())


class RefusedError(Exception):
    """No plan can say this."""


def prepare(case):
    """Sees, before the ranks are forked, whether the plan can be said: enough blocks, sizes that divide."""
    graph = source_and_graph(case)[1]
    options = {key: value for key, value in case.options.items() if key != "num_steps"}
    if options["pipeline"] * options["virtual"] > len(graph.blocks):
        raise RefusedError("fewer blocks than stages")
    try:
        resolve(make_plan(graph, **options), graph)
    except PlanError as problem:
        raise RefusedError(str(problem)) from problem


def compare(case):
    """What runs on every rank."""
    return verify(case)


def errors_of(results):
    """Worst error of a case, or what went wrong, or that no plan can say it."""
    for result in results:
        if isinstance(result, Raised):
            return REFUSED if result.kind == "RefusedError" else f"{result.kind}: {result.trace}"
    report = results[0]
    if report is None or any(result is not None for result in results[1:]):
        return "a rank ended or did not answer"
    if report["missing"] or report["worst_gradient_error"] is None or report["worst_loss_error"] is None:
        return str(report)
    if report["tolerance"] > TOLERANCE:  # in bf16 or fp16: no more than rounding explains
        return 0.0 if report["ok"] else str(report)
    return max(
        report["worst_loss_error"], report["worst_gradient_error"], report["worst_buffer_error"] or 0.0
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, choices=sorted(MESHES), default=4)
    parser.add_argument("--every", type=int, default=1, help="run only every n-th (default: 1)")
    args = parser.parse_args()
    cases = list(combinations(args.ranks))[:: args.every]
    worst, wrong, refused, began_s = 0.0, {}, 0, time.monotonic()
    for begin in range(0, len(cases), 24):
        part = cases[begin : begin + 24]
        for name, results in run_cases(args.ranks, part).items():
            error = errors_of(results)
            if error == REFUSED:
                refused += 1
            elif isinstance(error, str) or error > TOLERANCE:
                wrong[name] = error
                print(next(case for case in part if case.name == name), error, flush=True)
            else:
                worst = max(worst, error)
        done = begin + len(part)
        told = f"{done} of {len(cases)}: {refused} refused, {len(wrong)} wrong, worst error {worst:.1e}"
        print(f"{told}, {time.monotonic() - began_s:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
