"""Parameters: ties, fused dims; and the fingerprint of the model."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import source_from_functions
from tests.capture.models import SMALL, small_capture, small_source


def fused(name: str) -> dict[str, dict[int, int]]:
    parameters = small_capture(name).at(2).parameters
    return {key: dict(spec.fused_dims) for key, spec in parameters.items() if spec.fused_dims}


def test_tied_parameters_are_one() -> None:
    parameters = small_capture("gpt").at(2).parameters
    assert parameters["wte.weight"].aliases == ("lm_head.weight",)
    assert "lm_head.weight" not in parameters
    assert small_capture("gpt-untied").at(2).parameters["wte.weight"].aliases == ()
    shared = small_capture("hf-t5").at(2).parameters["shared.weight"]
    assert shared.aliases == ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def test_tied_parameter_is_an_input_of_both_blocks() -> None:
    readers = [
        b.name for b in small_capture("gpt").at(2).blocks if "wte.weight" in [e.source for e in b.inputs]
    ]
    assert readers == ["wte", "lm_head"]


def test_fused_dims_of_the_examples() -> None:
    assert fused("gpt") == {f"blocks.{i}.attn.qkv.{n}": {0: 3} for i in range(4) for n in ("weight", "bias")}
    assert fused("hf-gpt2") == {
        f"transformer.h.{i}.attn.c_attn.{name}": {dim: 3}
        for i in range(3)
        for name, dim in (("weight", 1), ("bias", 0))
    }
    assert fused("hf-mixtral") == {f"model.layers.{i}.mlp.experts.gate_up_proj": {1: 2} for i in range(2)}
    half = capture(small_source("hf-mixtral"), torch.bfloat16).at(1).parameters  # another grouped product
    assert half["model.layers.0.mlp.experts.gate_up_proj"].fused_dims == {1: 2}
    for name in ("hf-llama", "hf-bert", "hf-t5", "hf-vit", "resnet", "recommender"):
        assert fused(name) == {}


def test_gates_of_an_lstm_are_fused() -> None:
    assert set(fused("perception")) == {
        f"memory.{kind}_{side}_l{layer}"
        for kind in ("weight", "bias")
        for side in ("ih", "hh")
        for layer in range(2)
    }


class Projection(nn.Module):
    """One linear layer whose product is cut in the way that ``cut`` says."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut = cut
        self.qkv = nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 5, 12)
        y = self.qkv(x)
        batch, seq, _ = y.shape
        match self.cut:
            case "chunk":
                a, b = y.chunk(2, -1)
                y = a.sigmoid() * b
            case "glu":
                y = nn.functional.glu(y, -1)
            case "slices":
                y = y[..., :8] * y[..., 8:16] + y[..., 16:]
            case "unequal":
                a, b = y.split([16, 8], -1)
                y = a.sum(-1, keepdim=True) * b
            case "unbind":
                q, k, v = y.view(batch, seq, 3, 2, 4).unbind(2)
                y = q * k + v
            case "permute":
                qkv = y.reshape(batch, seq, 3, 2, 4).permute(2, 0, 3, 1, 4)
                y = qkv[0] * qkv[1] + qkv[2]
            case "heads":
                y = y.view(batch, seq, 6, 4).transpose(1, 2).softmax(-1)
            case (
                "heads-outside"
            ):  # (heads, 3, dim): each head's own q, k and v; shards of whole heads need no parts
                q, k, v = y.view(batch, seq, 2, 3, 4).unbind(3)
                y = q * k + v
        return y.square().mean()


@pytest.mark.parametrize(
    ("cut", "parts"),
    [
        ("chunk", 2),
        ("glu", 2),
        ("slices", 3),
        ("unequal", None),
        ("unbind", 3),
        ("permute", 3),
        ("heads", None),
        ("heads-outside", None),
    ],
)
def test_fused_parts(cut: str, parts: int | None) -> None:
    source = source_from_functions(lambda: Projection(cut), lambda n: {"x": torch.randn(n, 5, 12)})
    parameters = capture(source).at(2).parameters
    expected = None if parts is None else {0: parts}
    assert parameters["qkv.weight"].fused_dims == expected
    assert parameters["qkv.bias"].fused_dims == expected


def test_multi_head_attention_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0].mean()

    source = source_from_functions(Model, lambda n: {"x": torch.randn(n, 5, 8)})
    parameters = capture(source).at(2).parameters
    assert parameters["attention.in_proj_weight"].fused_dims == {0: 3}
    assert parameters["attention.out_proj.weight"].fused_dims is None


@pytest.mark.parametrize("name", SMALL)
def test_fingerprint_does_not_depend_on_micro_batch_or_dtype(name: str) -> None:
    fingerprint = small_capture(name).at(1).fingerprint
    assert small_capture(name).at(3).fingerprint == fingerprint
    half = torch.float16 if name == "hf-t5" else torch.bfloat16  # T5 clamps its activations in float16 only
    assert capture(small_source(name), half).at(2).fingerprint == fingerprint


def test_fingerprint_does_not_depend_on_casts_of_parameters() -> None:
    """As in Mamba: a half-precision parameter is cast before it is used, and viewed after that."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay, self.scale = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            decay = -torch.exp(self.decay.float())
            scaled = self.linear(x).float() * self.scale.float()[None, :].unsqueeze(0)[0]
            return (scaled + decay).to(x.dtype).mean()

    source = source_from_functions(Model, lambda b: {"x": torch.randn(b, 4)})
    prints = {
        capture(source, dtype).at(2).fingerprint
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    }
    assert len(prints) == 1


@pytest.mark.parametrize(
    "change", [{"n_layer": 3}, {"n_embd": 16}, {"n_head": 2}, {"tied": False}, {"seq": 8}, {"dropout": 0.5}]
)
def test_fingerprint_changes_with_the_structure(change: dict[str, object]) -> None:
    changed = capture(small_source("gpt", **change)).at(1).fingerprint
    assert changed != small_capture("gpt").at(1).fingerprint


def test_fingerprint_changes_with_a_parameter_name() -> None:
    class Model(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(4, 4))
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, self.name)(x).mean()

    prints = {
        capture(source_from_functions(lambda n=n: Model(n), lambda b: {"x": torch.randn(b, 4)}))
        .at(1)
        .fingerprint
        for n in ("one", "two")
    }
    assert len(prints) == 2


def test_dtype_of_parameters_and_floating_inputs() -> None:
    model = capture(small_source("perception"), torch.bfloat16).at(2)
    assert {spec.spec.dtype for spec in model.parameters.values()} == {torch.bfloat16}
    assert model.batch["frames"].dtype is torch.bfloat16
    assert model.buffers["perception.0.norm.num_batches_tracked"].dtype is torch.int64
    assert small_capture("gpt").at(2).batch["labels"].dtype is torch.int64
