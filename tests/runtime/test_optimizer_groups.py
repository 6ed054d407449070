"""Groups of a rank's own layers keep their learning rates in a checkpoint, whoever loads it."""

import json

import pytest
import torch

from autopar.errors import UsageError
from autopar.runtime.optimizer_groups import options_to_restore, restore_options
from tests.runtime.world import Case, check, run_cases

PLANS = {
    "pipeline": {"pipeline": 2},
    "zbv": {"pipeline": 2, "schedule": "zbv", "virtual": 2},
    "zero3": {"data": 2, "zero": 3},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")

    def case(name, body, plan, saved):
        extra = {"path": str(folder / saved)}
        body = f"optimizer_group_bodies:{body}"
        return Case(name, body, args={"n_layer": 4}, options=PLANS[plan], extra=extra)

    saves = [case(f"save-{plan}", "save", plan, plan) for plan in PLANS]
    loads = [
        case(f"{saved}-{loaded}", "load", loaded, saved)
        for saved, loaded in (("pipeline", "pipeline"), ("zero3", "pipeline"), ("pipeline", "zbv"))
    ]
    return run_cases(2, [*saves, *loads, case("refused", "refused", "pipeline", "zero3")])


@pytest.mark.parametrize("way", ["pipeline-pipeline", "zero3-pipeline", "pipeline-zbv"])
def test_every_layer_keeps_its_learning_rate(found, way):
    assert check(found[way], 2) == [[], []]


def test_other_groups_are_refused_on_every_rank(found):
    merged, split, by_place = check(found["refused"], 2)[0]
    assert check(found["refused"], 2)[1] == [merged, split, by_place]
    assert "parameters of one group, that of 'wte.weight', had different options" in merged
    assert "were in one parameter group when the checkpoint was saved, and are in two now" in split
    assert "other options than a rank before it (lr 0.005 and 0.01)" in by_place


def optimizer_of(groups):
    """AdamW whose groups hold parameters of these names."""
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for names in groups for name in names}
    made = torch.optim.AdamW([{"params": [parameters[name] for name in names]} for names in groups])
    return made, {parameter: name for name, parameter in parameters.items()}


def text_of(groups, positions=None):
    entries = [{"options": options, "parameters": names} for options, names in groups]
    return json.dumps({"groups": entries, "positions": positions})


def test_groups_in_another_order_take_their_own_options():
    optimizer, names = optimizer_of([["b"], ["a"]])
    text = text_of([({"lr": 0.1, "betas": [0.5, 0.6]}, ["a"]), ({"lr": 0.2}, ["b", "c"])])
    restore_options([optimizer], options_to_restore(text, [optimizer], names))
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.6)


def test_a_group_without_parameters_here_takes_those_of_its_position():
    optimizer, names = optimizer_of([["a"], []])
    text = text_of([({"lr": 0.1}, ["a"]), ({"lr": 0.2}, ["z"])], [{"lr": 0.1}, {"lr": 0.2}])
    restore_options([optimizer], options_to_restore(text, [optimizer], names))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_older_checkpoints_hold_options_by_position():
    optimizer, names = optimizer_of([["a"], ["b"]])
    text = json.dumps([{"lr": 0.1}, {"lr": 0.2, "param_names": ["x"]}])
    restore_options([optimizer], options_to_restore(text, [optimizer], names))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert "param_names" not in optimizer.param_groups[1]
    with pytest.raises(UsageError, match="with 1 parameter groups, those given have 2"):
        options_to_restore(json.dumps([{"lr": 0.1}]), [optimizer], names)


@pytest.mark.parametrize(
    ("groups", "saved", "match"),
    [
        ([["a"], ["b"]], [({"lr": 0.1}, ["a", "b"])], "'a' and 'b' were in one parameter group when"),
        ([["a", "b"]], [({"lr": 0.1}, ["a"]), ({"lr": 0.2}, ["b"])], r"that of 'a', .*\(lr 0.2 and 0.1\)"),
    ],
)
def test_other_groups_than_those_saved_are_refused(groups, saved, match):
    optimizer, names = optimizer_of(groups)
    with pytest.raises(UsageError, match=match):
        options_to_restore(text_of(saved), [optimizer], names)
