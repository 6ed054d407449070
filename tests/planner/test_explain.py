"""What ``explain`` and ``diff`` say of a plan against the planner's own answers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from autopar.cost.breakdown import TERMS
from autopar.errors import UsageError
from autopar.plan.decisions import Mesh, PatternLine, Plan, ScheduleName
from autopar.planner.compare import Side, compare_plans
from autopar.planner.differences import differences
from autopar.planner.explain import Costing, Explanation, cost_plan, explain_plan, fallbacks
from autopar.planner.explain_module import explain_module
from autopar.planner.freed_decision import without
from autopar.planner.picture import picture_of
from autopar.planner.replan import Replanner
from autopar.planner.sensitivity import planned_with_less
from tests.planner.subject import CLUSTER, Subject, captured, planned

GPT = {"n_layer": 2, "n_embd": 64, "n_head": 4, "seq": 32, "vocab": 256}
SUBJECT = Subject("examples/gpt.py", GPT, 16, with_baselines=False)
PINS = (
    "mesh.pipeline=2",
    "mesh.tensor=2",
    "batch.micro=4",
    "pipeline.schedule=1f1b",
    "zero=0",
    "tensor.wte=vocab",
    "tensor.blocks.*.attn.qkv=column",
    "tensor.blocks.*.attn.proj=row",
    "activations.*=replicate",
    "recompute.*=none",
)


@cache
def costing() -> Costing:
    source = captured(SUBJECT)
    return cost_plan(planned(SUBJECT, *PINS).plan, source.source, CLUSTER, captured=source)


def test_terms_add_up_to_what_plan_and_check_predict() -> None:
    found = costing()
    predicted = planned(SUBJECT, *PINS).prediction
    assert found.prediction == predicted
    for terms in found.breakdown.ranks:
        assert terms.total_s == pytest.approx(predicted.step_time_s, rel=1e-9)
    assert found.breakdown.terms.tensor_s > 0
    assert found.breakdown.terms.bubble_s > 0
    assert all(terms.seconds(name) >= 0 for terms in found.breakdown.ranks for name in TERMS)


def test_recompute_is_a_term_of_its_own() -> None:
    source = captured(SUBJECT)
    plan = replace(costing().resolved.plan, recompute=(PatternLine("*", "full"),))
    again = cost_plan(plan, source.source, CLUSTER, captured=source)
    before, after = costing().breakdown.terms, again.breakdown.terms
    assert before.recompute_s == 0 < after.recompute_s
    assert after.backward_s == pytest.approx(before.backward_s)
    assert after.tensor_s > before.tensor_s  # the collectives of the forward pass run again


def test_a_module_is_told_with_its_placements_and_collectives() -> None:
    use = explain_module(costing(), "blocks.0.attn")
    assert use.blocks == (("blocks.0", 0),)
    assert {p.name.removeprefix("blocks.0.attn."): p.placement for p in use.parameters} == {
        "qkv.weight": "shard(0, 3)",
        "qkv.bias": "shard(0, 3)",
        "proj.weight": "shard(1)",
        "proj.bias": "replicate",
    }
    linear = next(operator for operator in use.operators if operator.key.endswith("qkv:linear#0"))
    assert linear.rule.endswith("-> shard(2, 3)")
    sent = [one for operator in use.operators for one in operator.collectives]
    assert {(one.kind, one.is_backward) for one in sent} == {("all_reduce", False), ("all_reduce", True)}
    assert all(one.num_bytes == 4 * 32 * 64 * 2 and one.seconds > 0 for one in sent)


def test_a_whole_block_is_told_with_its_costs() -> None:
    use = explain_module(costing(), "blocks.1")
    (choice,) = use.whole
    operators_s = sum(o.forward_s for o in use.operators)
    assert choice.forward_compute_s >= operators_s * (1 - 1e-9)
    assert choice.saved_bytes > 0
    with pytest.raises(UsageError, match=r"no such module, block or parameter; did you mean 'blocks.1.mlp'"):
        explain_module(costing(), "blocks.1.mpl")


def test_nothing_falls_back_in_a_model_of_known_operators() -> None:
    assert fallbacks(costing().resolved) == ()


def test_a_decision_is_freed_with_what_follows_from_it() -> None:
    plan = costing().resolved.plan
    rest = without(plan, "mesh.tensor")
    assert rest.mesh == Plan().mesh and rest.stages is None and rest.tensor == () and rest.zero == 0
    assert without(plan, "zero").mesh == plan.mesh
    line = plan.tensor[0]
    assert line not in without(plan, f"tensor.{line.pattern}").tensor
    with pytest.raises(UsageError, match="no decision of a plan; did you mean 'zero'"):
        without(plan, "zeor")
    with pytest.raises(UsageError, match="the plan has no such line"):
        without(plan, "recompute.blocks.7")


def test_differences_name_what_changes_and_nothing_else() -> None:
    plan = costing().resolved.plan
    graph = costing().resolved.graph
    assert differences(plan, plan, graph) == ()
    other = replace(
        plan,
        zero=1,
        recompute=(PatternLine("blocks.0", "full"), PatternLine("*", "none")),
        tensor=(PatternLine("blocks.*.attn.qkv", "replicate"), *plan.tensor),
    )
    said = {(d.key, d.first, d.second) for d in differences(plan, other, graph)}
    assert ("zero", "0", "1") in said and ("recompute.blocks.0", "none", "full") in said
    (placed,) = (entry for entry in said if entry[0].startswith("tensor."))
    assert placed == ("tensor.blocks.*.attn.qkv.weight and 1 more", "column", "replicate")
    assert len(said) == 3


def test_decisions_tried_alone_and_their_remainder_make_the_whole_difference() -> None:
    plan = costing().resolved.plan
    other = replace(plan, micro_batch=2, recompute=(PatternLine("*", "full"),))
    sides = [Side(one, CLUSTER, None) for one in (plan, other)]
    found = compare_plans(*sides, captured(SUBJECT).source, captured(SUBJECT))
    assert [effect.key for effect in found.effects] == ["batch.micro", "recompute.*"]
    source = captured(SUBJECT)
    alone = cost_plan(replace(plan, micro_batch=2), source.source, CLUSTER, captured=source)
    assert found.effects[0].extra_s == pytest.approx(
        alone.prediction.step_time_s - costing().prediction.step_time_s
    )
    whole_s = found.second.prediction.step_time_s - found.first.prediction.step_time_s
    assert sum(effect.extra_s or 0.0 for effect in found.effects) + found.rest_s == pytest.approx(whole_s)


def test_a_mesh_with_another_number_of_stages_brings_its_stages() -> None:
    plan = costing().resolved.plan
    assert plan.stages is not None
    whole = tuple(name for stage in plan.stages for name in stage)
    other = replace(plan, mesh=Mesh(1, 4, 1), stages=(whole,), tensor=(), activations=(), operators=())
    sides = [Side(one, CLUSTER, None) for one in (plan, other)]
    found = compare_plans(*sides, captured(SUBJECT).source, captured(SUBJECT))
    mesh = next(effect for effect in found.effects if effect.key == "mesh")
    assert (mesh.first, mesh.second) == ("2 x 1 x 2", "1 x 4 x 1") and mesh.extra_s is not None
    assert "pipeline.stages" not in [effect.key for effect in found.effects]


def test_what_the_second_plan_has_no_choice_in_is_no_decision_without_effect() -> None:
    plan = costing().resolved.plan
    assert plan.stages is not None
    whole = tuple(name for stage in plan.stages for name in stage)
    other = replace(plan, mesh=Mesh(1, 4, 1), stages=(whole,), schedule=ScheduleName.GPIPE)
    other = replace(other, tensor=(), activations=(), operators=())
    sides = [Side(one, CLUSTER, None) for one in (plan, other)]
    found = compare_plans(*sides, captured(SUBJECT).source, captured(SUBJECT))
    schedule = next(effect for effect in found.effects if effect.key == "pipeline.schedule")
    assert schedule.extra_s is None and "one stage, which has one schedule" in schedule.remark


def test_compile_is_told_as_a_difference_that_nobody_costs() -> None:
    plan = costing().resolved.plan
    sides = [Side(one, CLUSTER, None) for one in (plan, replace(plan, compile=True))]
    found = compare_plans(*sides, captured(SUBJECT).source, captured(SUBJECT))
    (effect,) = found.effects
    assert (effect.key, effect.first, effect.second, effect.extra_s) == ("compile", "false", "true", None)
    assert "not costed" in effect.remark


def test_a_group_that_becomes_the_whole_data_axis_is_tried() -> None:
    plan = planned(SUBJECT, "mesh.data=4", "zero=3", "shard_group=2").plan
    other = replace(plan, shard_group=None)
    sides = [Side(one, CLUSTER, None) for one in (plan, other)]
    found = compare_plans(*sides, captured(SUBJECT).source, captured(SUBJECT))
    (group,) = found.effects
    assert (group.key, group.first, group.second) == ("shard_group", "2 of 4", "4 of 4")
    whole_bytes = found.second.prediction.peak_memory_bytes - found.first.prediction.peak_memory_bytes
    assert group.extra_bytes == whole_bytes < 0 == found.rest_bytes


def test_a_picture_holds_every_block_and_passes_through_the_plan_itself() -> None:
    found = picture_of(costing(), None, "title", (), "yaml")
    assert [cell.name for cell in found.blocks] == [b.name for b in costing().resolved.graph.blocks]
    assert {cell.rank for cell in found.blocks} == {0, 1}
    assert found.blocks[2].placements.startswith("shard(0, 3)")
    assert [point.mark for point in found.candidates] == ["plan"]
    links, batch = found.sensitivities
    for one in (links, batch):
        shares = dict(one.points)
        assert shares[1.0] == pytest.approx(1.0)
        ordered = [share for _, share in sorted(one.points)]
        assert ordered == sorted(ordered, reverse=True)  # more of it never makes a sample slower
    assert dict(links.points)[0.25] > 1.0


def test_what_less_memory_costs_is_planned_for() -> None:
    source, plan = captured(SUBJECT), costing().resolved.plan
    planner = Replanner(plan, source.source, CLUSTER, source, None, None)
    tight = replace(costing(), memory_limit_bytes=CLUSTER.device.framework_reserved_bytes * 3)
    found = planned_with_less(planner, tight)
    assert set(found) == {0.5, 0.75}  # a quarter of it does not even hold the framework
    free = planner.plan(Plan())
    assert found[0.5] >= found[0.75] == free.prediction.step_time_s
    assert planned_with_less(planner, tight, free) == found
    drawn = picture_of(tight, None, "title", (), "yaml", {**found, 0.5: 2 * found[0.75]}).sensitivities[2]
    shares = dict(drawn.points)
    assert (drawn.name, min(shares)) == ("memory of a device", 0.5)
    assert shares[0.5] == shares[0.625] == 2 * shares[0.75] == 2 * shares[1.0]


@cache
def explanation() -> Explanation:
    source = captured(SUBJECT)
    return explain_plan(costing(), source.source, source, top=3, free_keys=("zero", "mesh"))


@pytest.mark.slow
def test_every_line_costs_the_difference_of_two_plan_runs() -> None:
    free = planned(SUBJECT).prediction.step_time_s
    costs = {line.key: line for line in explanation().lines}
    assert {"mesh", "zero"} & set(costs)
    pins = {"mesh": ("mesh.pipeline=2", "mesh.data=1", "mesh.tensor=2"), "zero": ("zero=0",)}
    for key, sets in pins.items():
        if key in costs:
            pinned = planned(SUBJECT, *sets).prediction.step_time_s
            assert costs[key].step_time_s == pinned and costs[key].extra_s == pinned - free


@pytest.mark.slow
def test_the_free_optimum_and_freed_decisions_are_what_plan_answers() -> None:
    found = explanation()
    assert found.free is not None
    assert found.free.plan == planned(SUBJECT).plan
    assert len(found.free.alternatives) == 2
    assert all(other.terms is not None for other in found.free.alternatives if other.step_time_s)
    for freed in found.freed:
        assert freed.step_time_s <= found.costing.prediction.step_time_s * (1 + 1e-9)
        assert freed.gain_s == pytest.approx(found.costing.prediction.step_time_s - freed.step_time_s)
