"""Starting weights: recorded, replayed in slices, independent of who replays what."""

import copy

import pytest
import torch
from torch import nn

from autopar.capture.target import load_target
from autopar.errors import UsageError
from autopar.runtime.initialise import InitialState, hash_seed, initial_state, load_initial_state
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
