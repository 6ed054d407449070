"""Random sets of pins, drawn from all decisions: each is in the plan as written; none beats the free plan."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from autopar.capture.capture import Capture
from autopar.errors import InfeasibleError, UsageError
from autopar.lower.placements import resolve_placements
from autopar.lower.stages import output_words, recompute_words
from autopar.plan.bounds import size_of_stage
from autopar.plan.decisions import Plan
from autopar.plan.hand_made import decisions, without
from autopar.plan.merge import ATTRIBUTES
from autopar.plan.pins import parse_sets
from autopar.plan.write import write_plan
from autopar.planner.pins import resolve_pins
from tests.planner.subject import Subject, captured, planned, planned_within

GPT = {"n_layer": 3, "n_embd": 256, "n_head": 8, "seq": 64, "vocab": 1024}
MODELS = {
    "gpt": Subject("examples/gpt.py", GPT, 32, with_baselines=False),
    "recommender": Subject("examples/recommender.py", {}, 1024, with_baselines=False),
    "perception": Subject("examples/perception.py", {}, 64, with_baselines=False),
}
NUM_SETS = {"gpt": 40, "recommender": 30, "perception": 30}
MESHES = [(p, d, t) for p in (1, 2, 4) for d in (1, 2, 4) for t in (1, 2, 4) if p * d * t == 4]
LINES = {
    "gpt": {
        "tensor": ["wte=vocab", "blocks.*.mlp.fc=column", "blocks.*.attn.qkv=replicate", "*=replicate"],
        "activations": ["blocks.*=sequence", "blocks.0=batch", "*=replicate"],
        "recompute": ["blocks.1=full", "blocks.*=selective", "*=none", "*=full"],
    },
    "perception": {
        "tensor": ["planner.0=column", "memory=replicate", "*=replicate"],
        "activations": ["*=batch", "perception.*=replicate", "*=replicate"],
        "recompute": ["*=selective", "planner=full", "*=none", "features=[selective, full]"],
    },
    "recommender": {
        "tensor": ["user=vocab", "item=column", "*=replicate"],
        "activations": ["*=replicate"],
        "recompute": ["*=full", "*=none"],
    },
}


def drawn_pins(model: str, rng: random.Random) -> Iterator[str]:
    """Pins and bounds, most of which go together: of a mesh, and of the other decisions each by chance."""
    pipeline, data, tensor = rng.choice(MESHES)
    names = {"pipeline": pipeline, "data": data, "tensor": tensor}
    fixed = rng.sample(sorted(names), rng.choice((1, 2, 2, 3)))
    for axis in names:
        if axis in fixed:
            yield f"mesh.{axis}={names[axis]}"
        elif rng.random() < 0.5:
            yield f"mesh.{axis}={_around(names[axis], rng)}"
    samples = MODELS[model].global_batch // data
    if rng.random() < 0.5:
        micro = rng.choice([size for size in (1, 2, 4, 8, 16, 64, 256) if samples % size == 0])
        yield f"batch.micro={rng.choice((micro, _around(micro, rng)))}"
    zero = rng.choice((None, 0, 1, 2, 3, "<=1", ">=2", "1-2"))
    if zero is not None:
        yield f"zero={zero}"
    if rng.random() < 0.3 and data > 1:
        yield f"shard_group={rng.choice([size for size in (1, 2, 4) if data % size == 0])}"
    if rng.random() < 0.6:
        schedules = ["1f1b", "gpipe", "zero-bubble"]
        blocks = len(captured(MODELS[model]).at(2).blocks)
        if pipeline > 1 and 2 * pipeline <= blocks and model != "recommender":
            schedules += ["interleaved", "zbv"]
        schedule = rng.choice(schedules)
        yield f"pipeline.schedule={schedule}"
        if schedule == "interleaved":
            yield "pipeline.virtual=2"
    elif pipeline > 1 and rng.random() < 0.5:
        yield f"pipeline.blocks_per_stage={{{rng.choice(('0', 'last', '0-1'))}: <={rng.choice((3, 4, 5))}}}"
    for section, lines in LINES[model].items():
        if rng.random() < 0.5 and (section == "recompute" or tensor > 1):
            yield f"{section}.{rng.choice(lines)}"


def _around(number: int, rng: random.Random) -> str:
    """A bound that a number keeps."""
    return rng.choice((f"<={number}", f">={number}", f"{max(number // 2, 1)}-{2 * number}"))


def check_honoured(pins: Plan, plan: Plan, capture_: Capture) -> None:
    """Every decision of the constraints is the plan's, exactly."""
    for axis in ("pipeline", "data", "tensor"):
        assert getattr(pins.mesh, axis) in (None, getattr(plan.mesh, axis))
    for name in ("micro_batch", "zero", "schedule", "virtual"):
        assert getattr(pins, name) in (None, getattr(plan, name)), name
    for key, bound in pins.bounds.items():
        value = getattr(plan.mesh, key[5:]) if key.startswith("mesh.") else getattr(plan, ATTRIBUTES[key])
        assert bound.holds(value), key
    assert plan.stages is not None
    for stage, names in enumerate(plan.stages):
        size = size_of_stage(pins.stage_sizes, stage, len(plan.stages))
        assert size is not None and size.holds(len(names)), stage
    if pins.shard_group is not None and max(plan.zero if isinstance(plan.zero, tuple) else (plan.zero or 0,)):
        assert (plan.shard_group or plan.mesh.data) == pins.shard_group
    assert plan.micro_batch and plan.mesh.tensor
    graph = capture_.at(plan.micro_batch)
    wanted = resolve_pins(replace(pins, mesh=plan.mesh), graph, plan.mesh.tensor)
    placements = resolve_placements(plan, graph)
    words, recompute = output_words(plan, graph), recompute_words(plan, graph)
    for parameter, placement in wanted.placements.items():
        assert placements[parameter] == placement, parameter
    last = len(graph.blocks) - 1
    for block, word in wanted.words.items():
        assert plan.mesh.tensor == 1 or block == last or words[block] == word, block
    for block, allowed in wanted.recompute.items():
        assert recompute[block] in allowed, block


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "seed"), [(m, seed) for m, size in NUM_SETS.items() for seed in range(size)]
)
def test_pins_are_honoured_and_never_beat_the_free_plan(model: str, seed: int) -> None:
    sets = tuple(drawn_pins(model, random.Random(seed)))
    free = planned(MODELS[model])
    try:
        pinned = planned(MODELS[model], *sets)
    except InfeasibleError as problem:
        # Bounds that are drawn one by one need not go together; that is said of them, not of the memory.
        assert "within all bounds" in str(problem) or "not possible" in str(problem), (sets, problem)
        return
    except UsageError as problem:
        assert "it clashes with" in str(problem) or "no mesh of" in str(problem), (sets, problem)
        return
    check_honoured(parse_sets(sets), pinned.plan, captured(MODELS[model]))
    assert pinned.prediction.step_time_s >= free.bound_s * (1 - 1e-9), sets
    if free.status == "optimal":
        assert pinned.prediction.step_time_s >= free.prediction.step_time_s * (1 - 1e-9), sets


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_freeing_all_pins_gives_the_free_plan_byte_for_byte(model: str) -> None:
    free = write_plan(planned(MODELS[model]).plan)
    pins = parse_sets(tuple(drawn_pins(model, random.Random(0))))
    for key in decisions(pins):
        pins = without(pins, key)
    assert write_plan(planned_within(MODELS[model], pins).plan) == free
