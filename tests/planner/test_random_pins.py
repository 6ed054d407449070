"""Random sets of pins, drawn from all decisions: each is in the plan as written; none beats the free plan."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from autopar.capture.capture import Capture
from autopar.lower.placements import resolve_placements
from autopar.lower.stages import output_words, recompute_words
from autopar.plan.decisions import Plan
from autopar.plan.pins import parse_sets
from autopar.planner.pins import resolve_pins
from tests.planner.subject import Subject, captured, planned

GPT = {"n_layer": 4, "n_embd": 512, "n_head": 8, "seq": 128, "vocab": 2048}
MODELS = {
    "gpt": Subject("examples/gpt.py", GPT, 32, with_baselines=False),
    "recommender": Subject("examples/recommender.py", {}, 1024, with_baselines=False),
}
MESHES = [(p, d, t) for p in (1, 2, 4) for d in (1, 2, 4) for t in (1, 2, 4) if p * d * t == 4]
LINES = {
    "gpt": {
        "tensor": ["wte=vocab", "blocks.*.mlp.fc=column", "blocks.*.attn.qkv=replicate", "*=replicate"],
        "activations": ["blocks.*=sequence", "blocks.0=batch", "*=replicate"],
        "recompute": ["blocks.1=full", "blocks.*=selective", "*=none", "*=full"],
    },
    "recommender": {
        "tensor": ["user=vocab", "item=column", "*=replicate"],
        "activations": ["*=replicate"],
        "recompute": ["*=full", "*=none"],
    },
}


def drawn_pins(model: str, rng: random.Random) -> Iterator[str]:
    """Pins that go together: a whole mesh, and of the other decisions each with even chances."""
    pipeline, data, tensor = rng.choice(MESHES)
    names = {"pipeline": pipeline, "data": data, "tensor": tensor}
    for axis in rng.sample(sorted(names), 2 if rng.random() < 0.7 else 3):
        yield f"mesh.{axis}={names[axis]}"  # two degrees leave the third no choice
    samples = MODELS[model].global_batch // data
    if rng.random() < 0.5:
        yield f"batch.micro={rng.choice([size for size in (1, 2, 4, 8, 16, 64, 256) if samples % size == 0])}"
    zero = rng.choice((None, 0, 1, 2, 3))
    if zero is not None:
        yield f"zero={zero}"
    if rng.random() < 0.3 and data > 1:
        yield f"shard_group={rng.choice([size for size in (1, 2, 4) if data % size == 0])}"
    if rng.random() < 0.6:
        schedules = ["1f1b", "gpipe", "zero-bubble"]
        blocks = len(captured(MODELS[model]).at(2).blocks)
        if pipeline > 1 and 2 * pipeline <= blocks and model == "gpt":
            schedules += ["interleaved", "zbv"]
        schedule = rng.choice(schedules)
        yield f"pipeline.schedule={schedule}"
        if schedule == "interleaved":
            yield "pipeline.virtual=2"
    for section, lines in LINES[model].items():
        if rng.random() < 0.5 and (section == "recompute" or tensor > 1):
            yield f"{section}.{rng.choice(lines)}"


def check_honoured(pins: Plan, plan: Plan, capture_: Capture) -> None:
    """Every decision of the constraints is the plan's, exactly."""
    for axis in ("pipeline", "data", "tensor"):
        assert getattr(pins.mesh, axis) in (None, getattr(plan.mesh, axis))
    for name in ("micro_batch", "zero", "schedule", "virtual"):
        assert getattr(pins, name) in (None, getattr(plan, name)), name
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
    for block, choice in wanted.recompute.items():
        assert recompute[block] == choice, block


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("model", MODELS)
def test_pins_are_honoured_and_never_beat_the_free_plan(model: str, seed: int) -> None:
    sets = tuple(drawn_pins(model, random.Random(seed)))
    free, pinned = planned(MODELS[model]), planned(MODELS[model], *sets)
    check_honoured(parse_sets(sets), pinned.plan, captured(MODELS[model]))
    assert pinned.prediction.step_time_s >= free.bound_s * (1 - 1e-9)
    if free.status == "optimal":
        assert pinned.prediction.step_time_s >= free.prediction.step_time_s * (1 - 1e-9)
