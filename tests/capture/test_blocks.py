"""How models are divided: names, classes, and what crosses between blocks."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.model_graph import InputKind, ModelGraph, calls_of
from autopar.capture.target import ModelSource, source_from_functions
from tests.capture.models import SMALL, small_capture

NAMES = {
    "gpt": ["wte", "wpe", *(f"blocks.{i}" for i in range(4)), "ln_f", "lm_head", "loss"],
    "gpt-untied": ["wte", "wpe", "blocks.0", "blocks.1", "ln_f", "lm_head", "loss"],
    "resnet": [
        "stem",
        *(f"stages.{stage}.{block}" for stage in range(4) for block in range(2)),
        "head",
        "loss",
    ],
    "perception": [*(f"perception.{i}" for i in range(3)), "features", "memory", "planner", "loss"],
    "recommender": ["user", "item", "user_bias", "item_bias", "loss"],
    "hf-gpt2": [
        "transformer.wte",
        "transformer.wpe",
        *(f"transformer.h.{i}" for i in range(3)),
        "transformer.ln_f",
        "lm_head",
        "loss",
    ],
    "hf-llama": [
        "model.embed_tokens",
        *(f"model.layers.{i}" for i in range(3)),
        "model.norm",
        "lm_head",
        "loss",
    ],
    "hf-bert": ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(3)), "cls", "loss"],
    "hf-t5": [
        "encoder.embed_tokens",
        *(f"encoder.block.{i}" for i in range(3)),
        "encoder.final_layer_norm",
        "decoder.embed_tokens",
        *(f"decoder.block.{i}" for i in range(3)),
        "decoder.final_layer_norm",
        "lm_head",
        "loss",
    ],
    "hf-vit": [
        "vit.embeddings",
        *(f"vit.layers.{i}" for i in range(3)),
        "vit.layernorm",
        "classifier",
        "loss",
    ],
    "hf-resnet": [
        "resnet.embedder",
        *(f"resnet.encoder.stages.0.layers.{i}" for i in range(2)),
        *(f"resnet.encoder.stages.1.layers.{i}" for i in range(3)),
        "classifier",
        "loss",
    ],
    "hf-mixtral": ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head", "loss"],
}


def classes_of(model: ModelGraph, prefix: str) -> list[str]:
    return [block.class_key for block in model.blocks if block.name.startswith(prefix)]


@pytest.mark.parametrize("name", SMALL)
def test_names(name: str) -> None:
    assert [block.name for block in small_capture(name).at(2).blocks] == NAMES[name]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("gpt", "blocks."),
        ("hf-gpt2", "transformer.h."),
        ("hf-llama", "model.layers."),
        ("hf-bert", "bert.encoder.layer."),
        ("hf-vit", "vit.layers."),
        ("hf-mixtral", "model.layers."),
    ],
)
def test_equal_layers_are_one_class(name: str, layers: str) -> None:
    model = small_capture(name).at(2)
    inside = classes_of(model, layers)
    assert len(set(inside)) == 1
    assert len({block.class_key for block in model.blocks}) == len(model.blocks) - len(inside) + 1


def test_t5_block_with_the_position_bias_is_a_class_of_its_own() -> None:
    model = small_capture("hf-t5").at(2)
    for layers in ("encoder.block.", "decoder.block."):
        first, *others = classes_of(model, layers)
        assert len(set(others)) == 1
        assert first not in others


def test_t5_values_that_skip_blocks_are_inputs_of_their_readers() -> None:
    model = small_capture("hf-t5").at(2)
    by_name = {block.name: block for block in model.blocks}
    encoded = by_name["encoder.final_layer_norm"].outputs[0]
    for index in range(3):
        inputs = by_name[f"decoder.block.{index}"].inputs
        assert encoded in [e.source for e in inputs if e.kind is InputKind.ACTIVATION]


def test_residual_blocks_of_a_stage_share_their_class() -> None:
    model = small_capture("hf-resnet").at(2)
    first, second, third = classes_of(model, "resnet.encoder.stages.1.")
    assert first != second == third


class Windowed(nn.Module):
    """Layers that differ only in a number."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[1])
        near = (position[:, None] - position[None]).abs() < self.window
        return x + (near.to(x.dtype) @ self.linear(x))


class Alternating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Windowed(2 if i % 2 else 4) for i in range(4))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).square().mean()


def _source(model: type[nn.Module], **shapes: tuple[int, ...]) -> ModelSource:
    return source_from_functions(
        model, lambda n: {name: torch.randn(n, *shape) for name, shape in shapes.items()}
    )


def test_layers_that_differ_in_a_constant_differ_in_class() -> None:
    keys = classes_of(capture(_source(Alternating, x=(6, 8))).at(2), "layers.")
    assert keys[0] == keys[2] != keys[1] == keys[3]


def test_frozen_layers_differ_in_class() -> None:
    class Frozen(Alternating):
        def __init__(self) -> None:
            super().__init__()
            for index, layer in enumerate(self.layers):
                layer.window = 2
                layer.requires_grad_(index > 1)

    model = capture(_source(Frozen, x=(6, 8))).at(2)
    keys = classes_of(model, "layers.")
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert not model.parameters["layers.0.linear.weight"].requires_grad


def test_class_depends_on_the_micro_batch() -> None:
    captured = small_capture("gpt")
    assert not {b.class_key for b in captured.at(1).blocks} & {b.class_key for b in captured.at(2).blocks}
    assert captured.at(2) is captured.at(2)


class TwoTowers(nn.Module):
    """Independent branches: light towers stay together where cuts between them would carry many values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.LayerNorm(4) for _ in range(3))
        self.mix = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.a(x), self.b(x), self.c(x)], -1)).mean()


def test_light_branches_are_not_cut_apart() -> None:
    names = [block.name for block in capture(_source(TwoTowers, x=(4,))).at(2).blocks]
    assert names == ["a", "mix", "loss"] or names == ["a", "b", "mix", "loss"]
    for block in capture(_source(TwoTowers, x=(4,))).at(2).blocks[1:]:
        assert sum(e.kind is InputKind.ACTIVATION for e in block.inputs) <= 2


def test_single_module_without_children_is_one_block() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).sum()

    assert [block.name for block in capture(_source(Plain, x=(4,))).at(2).blocks] == ["loss"]


def test_views_of_a_parameter_are_taken_where_they_are_read() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 4))
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            transposed = self.table.t()
            for layer in self.layers:
                x = layer(x) @ transposed
            return x.mean()

    model = capture(_source(Shared, x=(4,))).at(2)
    assert all("t" not in value.rpartition("_") for value in model.values)
    readers = [b.name for b in model.blocks if "table" in [e.source for e in b.inputs]]
    assert readers == ["layers.0", "layers.1"]


def test_node_meta() -> None:
    block = next(b for b in small_capture("gpt").at(2).blocks if b.name == "blocks.1")
    by_key = {node.meta["operator_key"]: node for node in block.graph.nodes if node.op == "call_function"}
    linear = by_key["blocks.1.attn.qkv:linear#0"]
    assert linear.meta["module"] == "blocks.1.attn.qkv"
    assert linear.meta["source_line"].rpartition("/")[2].startswith("gpt.py:")
    assert linear.meta["no_grad"] is False
    assert tuple(linear.meta["val"].shape) == (2, 16, 96)
    assert "blocks.1:add#1" in by_key
    for node in block.graph.nodes:
        assert set(node.meta) == {"val", "module", "source_line", "operator_key", "no_grad"}


def test_no_symbol_is_left() -> None:
    for block in small_capture("hf-llama").at(3).blocks:
        for node in block.graph.nodes:
            assert "SymInt" not in repr((node.args, node.kwargs))
            values = node.meta["val"] if isinstance(node.meta["val"], tuple) else (node.meta["val"],)
            assert all(type(dim) is int for value in values for dim in value.shape)


@pytest.mark.parametrize("name", SMALL)
def test_calls_are_those_of_the_graph(name: str) -> None:
    for block in small_capture(name).at(2).blocks:
        assert block.calls == calls_of(block.graph.nodes)
        assert all(call.operator_key for call in block.calls)
