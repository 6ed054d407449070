"""Making failing cases small: what can be left out of a model, and of a plan."""

from dataclasses import replace

from autopar.plan.read import parse_plan
from tests.differential import shrink as shrinking
from tests.differential.cases import Outcome, trial_of
from tests.differential.grammar import draw_model
from tests.differential.shrink import shrink

PLAN = """\
version: 1
batch: {global: 8, micro: 2}
mesh: {pipeline: 2, data: 2, tensor: 2, order: [data, pipeline, tensor]}
precision: fp32
pipeline: {schedule: 1f1b, virtual: 1, stages: [[a], [b, c]]}
tensor: {a: column, "*": replicate}
activations: {"*": sequence}
zero: [1, 3]
recompute: {a: full, "*": none}
offload: activations
"""


def test_a_seed_gives_the_same_model_every_time():
    sources = [draw_model(seed).source for seed in range(40)]
    assert sources == [draw_model(seed).source for seed in range(40)]
    assert len(set(sources)) == 40


def test_what_a_step_makes_goes_with_it_and_with_what_needs_it():
    for seed in range(40):
        model = draw_model(seed)
        for index, step in enumerate(model.steps):
            smaller = model.without(index)
            assert smaller is not None or not step.is_removable or step.makes
            if smaller is not None:
                assert len(smaller.steps) < len(model.steps)
                made = {name for left in smaller.steps for name in left.makes}
                assert all(left.needs <= made for left in smaller.steps)
                compile(smaller.source, "model.py", "exec")


def test_shrinking_keeps_what_the_failure_needs(monkeypatch, tmp_path):
    runs = []

    def run(trials, folder):
        (trial,) = trials
        runs.append(trial)
        plan = parse_plan(trial.plan)
        fails = plan.mesh.tensor == 2 and plan.recompute[0].word == "full" and "Linear" in trial.model.source
        return [Outcome(trial, problem="differs: x" if fails else "", plan=trial.plan)]

    monkeypatch.setattr(shrinking, "run_trials", run)
    trial = replace(trial_of(0), plan=PLAN)
    found = shrink(Outcome(trial, problem="differs: y", plan=PLAN), tmp_path)
    plan = parse_plan(found.plan)
    assert (plan.mesh.pipeline, plan.mesh.data, plan.mesh.tensor, plan.mesh.order) == (1, 1, 2, None)
    assert (plan.zero, plan.offload, plan.num_micro_batches) == (0, "none", 1)
    assert plan.recompute[0].word == "full" and plan.activations[0].word == "replicate"
    assert len(found.trial.model.steps) < len(trial.model.steps) and "Linear" in found.trial.model.source
    assert "--- model\nimport torch" in str(found) and "--- plan\n" in str(found)
