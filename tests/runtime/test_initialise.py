"""Starting weights: recorded, replayed in slices, independent of who replays what."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autopar.capture.target import load_target
from autopar.errors import UsageError
from autopar.runtime.initialise import InitialState, hash_seed, initial_state, load_initial_state
from autopar.runtime.recording import is_recorded
from tests.runtime.world import MODELS

NAMES = ("tied_gpt", "encoder_decoder", "perception")


class Unusual(nn.Module):
    """Initialisation as people write it: twice, cut from one draw, copied, orthogonal, from a list."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(8, 8)
        nn.init.normal_(self.twice.weight, std=0.02)
        nn.init.zeros_(self.twice.bias)
        self.cut = nn.Linear(4, 12)
        with torch.no_grad():
            draw = torch.randn(12, 4)
            self.cut.weight[:6].copy_(draw[:6])
            self.cut.weight[6:] = draw[6:] * 2
        self.target = copy.deepcopy(self.twice)
        self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(6, 6)))
        self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(6, 6)))
        rates = [x.item() for x in torch.linspace(0, 1, 3)]
        self.register_buffer("rates", torch.tensor(rates))
        self.register_buffer("mask", torch.ones(4, 4).tril(), persistent=False)
        self.empty = nn.Parameter(torch.full((3,), rates[1]))


def build(name):
    return Unusual if name == "unusual" else load_target(str(MODELS / f"{name}.py")).build_model


def plain(builder, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builder()
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", [*NAMES, "unusual"])
def test_exact_equals_the_plain_construction_bit_for_bit(name):
    expected = plain(build(name), 5)
    found = dict(initial_state(build(name), 5, "exact"))
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


def test_exact_holds_while_its_consumer_draws_numbers():
    expected = plain(Unusual, 5)
    for name, value in initial_state(Unusual, 5, "exact"):
        torch.rand(3)
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("name", [*NAMES, "unusual"])
def test_seeded_values_do_not_depend_on_which_are_asked_for(name):
    everything = {key: value.clone() for key, value in InitialState(build(name), 5).values()}
    other = InitialState(build(name), 5)
    for key in reversed(list(everything)):
        assert torch.equal(dict(other.values([key]))[key], everything[key])


def test_seeded_values_have_the_spread_of_the_plain_ones():
    found, expected = dict(initial_state(Unusual, 1)), plain(Unusual, 1)
    assert found["twice.weight"].std() == pytest.approx(0.02, rel=0.3)
    assert found["cut.weight"][6:].std() == pytest.approx(2.0, rel=0.5)
    assert torch.equal(found["rates"], expected["rates"]) and torch.equal(found["mask"], expected["mask"])
    assert torch.allclose(found["orthogonal"] @ found["orthogonal"].T, torch.eye(6), atol=1e-5)
    assert not found["twice.bias"].any() and found["empty"].tolist() == [0.5] * 3


def test_a_copied_parameter_stays_a_copy():
    found = dict(initial_state(Unusual, 1))
    assert torch.equal(found["target.weight"], found["twice.weight"])


def test_seeds_and_names_give_different_values():
    one, other = dict(initial_state(build("tied_gpt"), 1)), dict(initial_state(build("tied_gpt"), 2))
    assert not torch.equal(one["wte.weight"], other["wte.weight"])
    assert not torch.equal(one["blocks.0.fc.weight"], one["blocks.1.fc.weight"])


def test_the_callers_generators_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(initial_state(Unusual, 1))
    list(initial_state(Unusual, 1, "exact"))
    assert torch.equal(torch.get_rng_state(), before)


def test_recording_allocates_no_parameters():
    state = InitialState(lambda: nn.Linear(10**6, 10**6, bias=False))  # 4 TB
    assert state.parameters["weight"].shape == (10**6, 10**6)


def test_load_initial_state_fills_a_plain_module():
    model = build("perception")()
    load_initial_state(model, build("perception"), 4)
    expected = dict(initial_state(build("perception"), 4))
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())


CASTS = [
    lambda model: model.to("cpu"),
    lambda model: model.float(),
    lambda model: model.bfloat16(),
    lambda model: model.half().to(torch.float64),
]


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", ["tied_gpt", "unusual"])
def test_a_cast_at_the_end_is_recorded(name, cast):
    def builder():
        return cast(build(name)())

    state = InitialState(builder, 5, "exact")
    assert all(is_recorded(value) for value in state.parameters.values())
    expected, found = plain(builder, 5), dict(state.values())
    assert found.keys() == expected.keys()
    assert all(value.dtype == expected[key].dtype for key, value in found.items())
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


def copied_and_written():
    """What is written to a copy of a layer through ``.data``."""
    first = nn.Linear(4, 4)
    second = copy.deepcopy(first)
    second.weight.data.mul_(-1)
    second.bias.data.fill_(3.0)
    return nn.Sequential(first, second)


def changed_constant():
    """One array that several layers begin with, changed in place."""
    table = torch.from_numpy(np.arange(6, dtype=np.float32))
    table.mul_(2)
    return nn.ParameterList([nn.Parameter(table.clone()) for _ in range(3)])


def changed_array():
    array = np.zeros(4, dtype=np.float32)
    table = torch.from_numpy(array)
    array[:] = 3
    return nn.ParameterList([nn.Parameter(table)])


def own_generator():
    draw = torch.Generator().manual_seed(3)
    return nn.ParameterList([nn.Parameter(torch.randn(4, generator=draw)) for _ in range(3)])


def scaled_by_what_was_drawn():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight.data.div_(model[0].weight.abs().max().item())
    return model


def decided_by_what_was_drawn():
    model = nn.Linear(4, 4)
    if model.weight.sum() > 0:
        model.weight.data.neg_()
    return model


def orthogonal():
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))


BY_VALUE = [own_generator, scaled_by_what_was_drawn, decided_by_what_was_drawn, orthogonal, changed_array]


@pytest.mark.parametrize("builder", [copied_and_written, changed_constant, *BY_VALUE])
@pytest.mark.parametrize("init", ["seeded", "exact"])
def test_values_are_the_same_whichever_are_read_first(builder, init):
    state = InitialState(builder, 5, init)
    found = {name: value.clone() for name, value in state.values()}
    again = {name: value.clone() for name, value in state.values()}
    expected = plain(builder, 5)
    assert found.keys() == again.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(again[name], value)
        assert torch.equal(dict(InitialState(builder, 5, init).values([name]))[name], value)
    if init == "exact" or builder in BY_VALUE:
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_what_is_written_to_a_copy_is_its_own():
    found = {name: value.clone() for name, value in initial_state(copied_and_written, 1)}
    assert torch.equal(found["1.weight"], -found["0.weight"]) and found["1.bias"].tolist() == [3.0] * 4


def test_a_changed_constant_is_changed_once():
    found = [value.clone() for _, value in initial_state(changed_constant, 1)]
    assert all(torch.equal(value, 2 * torch.arange(6.0)) for value in found)


def seeds_itself():
    torch.manual_seed(3)
    first = nn.Linear(4, 4)
    torch.manual_seed(3)
    return nn.Sequential(first, nn.Linear(4, 4))


def seeds_a_part():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = nn.Linear(4, 4)
    return nn.Sequential(first, nn.Linear(4, 4))


def begins_on_meta():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model.to_empty(device="cpu")
    for layer in model:
        layer.reset_parameters()
    return model


def draws_again():
    """``trunc_normal_`` draws until nothing lies outside: how often depends on what comes."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(4, 4))
    for layer in model[:2]:
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
    nn.init.normal_(model[2].weight)
    return model


@pytest.mark.parametrize("builder", [seeds_itself, seeds_a_part, begins_on_meta, draws_again])
@pytest.mark.parametrize("seed", range(5))
def test_exact_equals_a_construction_with_a_stream_of_its_own(builder, seed):
    expected = plain(builder, seed)
    found = {name: value.clone() for name, value in initial_state(builder, seed, "exact")}
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_truncated_normals_are_recorded():
    assert all(is_recorded(value) for value in InitialState(draws_again).parameters.values())


@pytest.mark.parametrize("init", ["seeded", "exact"])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_values_that_the_construction_reads_from_a_file_arrive(tmp_path, kind, init):
    saved, path = nn.Linear(4, 4).state_dict(), tmp_path / f"weights.{kind}"
    files = pytest.importorskip("safetensors.torch") if kind == "safetensors" else None
    files.save_file(saved, path) if files else torch.save(saved, path)

    def builder():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        model[0].load_state_dict(files.load_file(path) if files else torch.load(path, weights_only=True))
        return model

    torch.manual_seed(3)
    before = torch.get_rng_state()
    found, expected = dict(initial_state(builder, 5, init)), plain(builder, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found["0.weight"], saved["weight"])
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_a_mistake_in_the_construction_is_told_as_it_is():
    with pytest.raises(ZeroDivisionError):
        InitialState(lambda: nn.Linear(1 // 0, 2))


def test_construction_that_needs_values_is_refused():
    def decide():
        return nn.Linear(2, 2) if torch.randn(3).nonzero().shape[0] > 1 else nn.Linear(3, 3)

    with pytest.raises(UsageError, match="decides by the value of a tensor"):
        InitialState(decide)


def test_unknown_initialisation_is_refused():
    with pytest.raises(
        UsageError, match="init='zeros' is not known: it is no file or folder; use 'seeded' or 'exact'"
    ):
        InitialState(Unusual, init="zeros")


def test_hash_seed_is_the_same_everywhere():
    assert hash_seed(0, "wte.weight", 1) == hash_seed(0, "wte.weight", 1) == 1491412208560700158
