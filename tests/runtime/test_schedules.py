"""Interleaved and zero-bubble schedules train as one process does: loss and every gradient, in float64."""

from itertools import product

import pytest

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import schedule_actions
from tests.runtime.expect import assert_clipped, assert_close, assert_equal, assert_statistics_equal
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import ROOT, Case, check, run_cases

VIRTUAL = {"interleaved": 2, "zero-bubble": 1, "zbv": 2}


def case(name, model="tied_gpt", body="verify", **options):
    if body == "verify":
        options.setdefault("num_steps", 1)
    if options.get("tensor", 1) > 1 and model == "tied_gpt":
        options.setdefault("lines", GPT_TENSOR)
    options.setdefault("virtual", VIRTUAL[options["schedule"]])
    settings = {key: options.pop(key) for key in ("micro_batch", "args", "dtype") if key in options}
    return Case(name, body, model=model, options=options, **settings)


def each(name, model="tied_gpt", **options):
    return [case(f"{name}-{schedule}", model, schedule=schedule, **options) for schedule in VIRTUAL]


TWO = [
    *(x for m in (1, 5) for x in each(f"m{m}", pipeline=2, num_micro_batches=m)),
    *each("recompute", pipeline=2, num_micro_batches=3, recompute="full", num_steps=2),
    *each("skips", "encoder_decoder", pipeline=2, num_micro_batches=3),
    *each("batchnorm-lstm", "perception", pipeline=2, num_micro_batches=4, num_steps=2, recompute="full"),
    *(
        x
        for zero in (0, 3)  # the tied embedding and head are on one rank
        for x in each(f"one-rank-zero{zero}", data=2, zero=zero, num_micro_batches=3, num_steps=2)
    ),
    case("interleaved-v3", schedule="interleaved", pipeline=2, virtual=3, num_micro_batches=4),
]
FOUR = [
    *each("p4-m6", "encoder_decoder", pipeline=4, num_micro_batches=6),
    *each("tensor", pipeline=2, tensor=2, activations="sequence", num_micro_batches=3),
    *each("zero2", pipeline=2, data=2, zero=2, num_micro_batches=3, num_steps=2),
    case("mixed-zero", schedule="zbv", pipeline=2, data=2, zero=(1, 0, 3, 2), num_micro_batches=3),
]

# Between and beyond these: a long run.
LONG_TWO = [
    *(x for m in (2, 3) for x in each(f"m{m}", pipeline=2, num_micro_batches=m)),
    *each("selective", pipeline=2, num_micro_batches=3, recompute="selective"),
    *(
        x
        for zero in (1, 2)
        for x in each(f"one-rank-zero{zero}", data=2, zero=zero, num_micro_batches=3, num_steps=2)
    ),
]
LONG_FOUR = [
    *each("p4-m2", "encoder_decoder", pipeline=4, num_micro_batches=2),
    *(
        x
        for zero in (0, 1, 3)
        for x in each(f"zero{zero}", pipeline=2, data=2, zero=zero, num_micro_batches=3, num_steps=2)
    ),
    *each("zero-recompute", pipeline=2, data=2, zero=2, num_micro_batches=3, recompute="full"),
    *(
        x
        for zero in (1, 2, 3)
        for x in each(f"shard-groups-zero{zero}", data=4, zero=zero, shard_group=2, num_micro_batches=3)
    ),
    *each("activations-away", pipeline=2, data=2, num_micro_batches=3, offload="activations"),
    *each("optimizer-away", pipeline=2, data=2, zero=1, offload="optimizer", num_steps=2),
    *each("parameters-away", pipeline=2, data=2, zero=3, offload="parameters", num_steps=2),
    *each("order", pipeline=2, data=2, order="data pipeline tensor", num_micro_batches=3),
]
EIGHT = [
    *each("all-zero1", pipeline=2, data=2, tensor=2, zero=1, num_micro_batches=3, recompute="full"),
    *each("p4-data2", pipeline=4, data=2, zero=2, num_micro_batches=5),
]

# What else a training script sees, where a rank's stages are not next to each other.
PLANS = {
    "interleaved": {"schedule": "interleaved", "pipeline": 2, "num_micro_batches": 3},
    "zbv": {"schedule": "zbv", "pipeline": 2, "num_micro_batches": 3},
    "zero-bubble": {"schedule": "zero-bubble", "pipeline": 2, "num_micro_batches": 3},
    "interleaved-zero3": {"schedule": "interleaved", "data": 2, "zero": 3},
    "zbv-zero2": {"schedule": "zbv", "data": 2, "zero": 2},
}
HALF = ("zero-bubble", "zbv", "interleaved-zero3")


def half(name):
    return case(
        f"bf16-{name}", body="precision_bodies:half", dtype="bfloat16", precision="bf16", **PLANS[name]
    )


SURFACE = [
    *(
        case(f"{body}-{name}", body=body, **options)
        for body, (name, options) in product(("clip", "surface", "events"), PLANS.items())
    ),
    *(half(name) for name in HALF),
    *(case(f"dropout-{name}", body="dropout", args={"dropout": 0.2}, **PLANS[name]) for name in VIRTUAL),
    case("dropout-zbv-recompute", body="dropout", args={"dropout": 0.2}, recompute="full", **PLANS["zbv"]),
]

# The example models, at every number of micro-batches: a long run.
EXAMPLES = {
    "gpt": {"n_layer": 6, "n_embd": 16, "n_head": 2, "seq": 8, "vocab": 32},
    "resnet": {"depth": 18, "width": 4, "image_size": 32, "num_classes": 4},
    "perception": {"width": 4, "hidden": 8, "num_frames": 2, "image_size": 64, "num_convs": 5},
}
WIDE = {
    pipeline: [
        case(
            f"{model}-{schedule}-m{m}",
            str(ROOT / "examples" / f"{model}.py"),
            args=EXAMPLES[model],
            schedule=schedule,
            pipeline=pipeline,
            num_micro_batches=m,
            recompute="full" if m % 2 else "none",
        )
        for model, schedule, m in product(EXAMPLES, VIRTUAL, range(1, 7))
    ]
    for pipeline in (2, 4)
}


@pytest.fixture(scope="module")
def surface():
    return run_cases(2, SURFACE)


@pytest.mark.parametrize("name", [x.name for x in TWO])
def test_two_ranks_equal_one_process(two, name):
    assert_equal(two[name], 2)


@pytest.mark.parametrize("schedule", VIRTUAL)
def test_batchnorm_statistics_advance_once_under_recompute(two, schedule):
    assert_statistics_equal(two[f"batchnorm-lstm-{schedule}"], 2)


@pytest.mark.parametrize("name", [x.name for x in FOUR])
def test_four_ranks_equal_one_process(four, name):
    assert_equal(four[name], 4)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "cases"), [(2, LONG_TWO), (4, LONG_FOUR)], ids=["two", "four"])
def test_combinations_equal_one_process(num_ranks, cases):
    found = run_cases(num_ranks, cases)
    for name in found:
        assert_equal(found[name], num_ranks)


@pytest.mark.slow
def test_eight_ranks_equal_one_process():
    found = run_cases(8, EIGHT)
    for name in found:
        assert_equal(found[name], 8)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("pipeline", WIDE)
def test_examples_equal_one_process_at_every_number_of_micro_batches(pipeline):
    wrong = []
    for begin in range(0, len(WIDE[pipeline]), 27):
        found = run_cases(pipeline, WIDE[pipeline][begin : begin + 27])
        for name, results in found.items():
            try:
                assert_equal(results, pipeline)
            except AssertionError as error:
                wrong.append((name, str(error)[:2000]))
    assert not wrong


@pytest.mark.parametrize("name", PLANS)
def test_the_runtime_plays_the_list_of_the_simulator(surface, name):
    plan = PLANS[name]
    pipeline, virtual = plan.get("pipeline", 1), VIRTUAL[plan["schedule"]]
    schedule = ScheduleName(plan["schedule"])
    lists = schedule_actions(schedule, pipeline * virtual, plan.get("num_micro_batches", 2), virtual)
    for result in check(surface[f"events-{name}"], 2):
        assert result["events"] == [str(action) for action in lists[result["pipeline"]]]


@pytest.mark.parametrize("name", PLANS)
def test_clip_grad_norm_equals_one_process(surface, name):
    assert_clipped(surface[f"clip-{name}"], 2)


@pytest.mark.parametrize("name", PLANS)
def test_names_losses_and_states_are_those_of_one_process(surface, name):
    results = check(surface[f"surface-{name}"], 2)
    assert results[0]["loss"] == results[1]["loss"]
    for result in results:
        assert len(set(result["names"])) == len(result["names"]) == result["num_parameters"]
        assert result["loss_error"] < 1e-12 and result["accumulated"] < 1e-12 and result["state"] == 0.0


def test_ranks_hold_the_stages_of_their_schedule(surface):
    names = [set(result["names"]) for result in check(surface["surface-interleaved"], 2)]
    assert names[0] & names[1] == {"wte.weight"}  # tied: first stage and last
    names = [set(result["names"]) for result in check(surface["surface-zbv"], 2)]
    assert not names[0] & names[1]
    assert {"wte.weight", "wpe.weight"} <= names[0]  # first stage and last, tied, on one rank


@pytest.mark.parametrize("name", HALF)
def test_bf16_is_close_to_float32(surface, name):
    assert_close(surface[f"bf16-{name}"], 2)


@pytest.mark.slow
def test_bf16_is_close_to_float32_under_the_other_plans():
    for results in run_cases(2, [half(name) for name in PLANS if name not in HALF]).values():
        assert_close(results, 2)


@pytest.mark.parametrize("names", [("interleaved", "zbv"), ("zero-bubble", "zbv"), ("zbv", "zbv-recompute")])
def test_masks_do_not_depend_on_the_schedule(surface, names):
    one, other = (check(surface[f"dropout-{name}"], 2)[0] for name in names)
    assert one["first"] == pytest.approx(other["first"], rel=1e-12)
    assert one["checksum"] == pytest.approx(other["checksum"], rel=1e-9, abs=1e-18)
    assert one["first"] != one["second"]
