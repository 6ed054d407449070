"""Plans bound to a model: what comes out, and every mistake an error at its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autopar.capture.capture import capture
from autopar.capture.target import ModelSource, load_target
from autopar.errors import PlanError
from autopar.hardware.yaml_lines import Place
from autopar.lower.resolve import missing_decisions, names_operator, resolve
from autopar.plan.decisions import (
    ClusterReference,
    Mesh,
    ModelReference,
    PatternLine,
    Plan,
    Recompute,
    ScheduleName,
)
from autopar.sharding.boundary import boundary_placements
from autopar.sharding.placement import REPLICATE, Shard
from autopar.sharding.propagation import propagate
from tests.lower.models import MICRO_BATCH, MODELS, lines, load, plan_for

GPT = {**MODELS["gpt"].vocab, **MODELS["gpt"].tensor}


def gpt_plan(degree: int = 2, **changes: Any) -> Plan:
    _, graph = load("gpt")
    return replace(plan_for(graph, GPT, degree), path="plan.yaml", places={"mesh": Place(3, 1)}, **changes)


def fails(plan: Plan, match: str, name: str = "gpt") -> None:
    _, graph = load(name)
    with pytest.raises(PlanError, match=match):
        resolve(plan, graph)


def test_words_become_placements() -> None:
    _, graph = load("gpt")
    found = resolve(gpt_plan(), graph).parameter_placements
    assert found["wte.weight"] == Shard(0)
    assert found["blocks.0.attn.qkv.weight"] == found["blocks.0.attn.qkv.bias"] == Shard(0, 3)
    assert found["blocks.0.attn.proj.weight"] == Shard(1)
    assert found["blocks.0.attn.proj.bias"] == found["blocks.0.ln_1.weight"] == REPLICATE


def test_conv1d_weight_is_transposed() -> None:
    _, graph = load("hf-gpt2")
    found = resolve(plan_for(graph, MODELS["hf-gpt2"].tensor, 2), graph).parameter_placements
    assert found["transformer.h.0.attn.c_attn.weight"] == Shard(1, 3)
    assert found["transformer.h.0.attn.c_attn.bias"] == Shard(0, 3)
    assert found["transformer.h.0.mlp.c_proj.weight"] == Shard(0)


def test_tied_weight_is_found_by_either_name() -> None:
    _, graph = load("gpt")
    plan = plan_for(graph, {"lm_head": "column"}, 2)
    assert resolve(plan, graph).parameter_placements["wte.weight"] == Shard(0)
    plan = plan_for(graph, {"wte": "column"}, 2)
    assert resolve(plan, graph).parameter_placements["wte.weight"] == Shard(1)


def test_running_statistics_follow_their_weight() -> None:
    _, graph = load("perception")
    found = resolve(plan_for(graph, MODELS["perception"].tensor, 2), graph)
    assert found.parameter_placements["perception.0.norm.running_mean"] == Shard(0)
    assert "perception.1.norm.running_mean" not in found.parameter_placements


def test_stages_and_words_of_blocks() -> None:
    _, graph = load("gpt")
    names = [block.name for block in graph.blocks]
    plan = gpt_plan(
        stages=(tuple(names[:3]), tuple(names[3:])),
        mesh=Mesh(2, 1, 2),
        activations=lines({"blocks.*": "sequence", "*": "replicate"}),
        recompute=lines({"blocks.0": "full", "*": "none"}),
    )
    resolved = resolve(plan, graph)
    assert resolved.num_stages == 2 and resolved.stages == ((0, 1, 2), (3, 4, 5, 6))
    assert [d.stage for d in resolved.blocks] == [0, 0, 0, 1, 1, 1, 1]
    assert [d.output_word for d in resolved.blocks[1:4]] == ["replicate", "sequence", "sequence"]
    assert resolved.blocks[3].input_word == "sequence"
    assert [d.recompute for d in resolved.blocks[2:4]] == [Recompute.FULL, Recompute.NONE]


def test_operator_override_wins() -> None:
    _, graph = load("gpt")
    key = "blocks.0:add#0"
    plan = gpt_plan(operators=lines({key: "shard(1), shard(1) -> shard(1)"}))
    decision = resolve(plan, graph).blocks[2]
    node = next(n for n in decision.block.graph.nodes if n.meta.get("operator_key") == key)
    assert str(decision.sharding.rules[node.name]) == "shard(1), shard(1) -> shard(1)"
    assert decision.overrides == {key: "shard(1), shard(1) -> shard(1)"}


def test_blocks_of_a_class_are_laid_out_as_each_would_be_by_itself() -> None:
    degree = 2
    _, graph = load("gpt")
    resolved = resolve(plan_for(graph, MODELS["gpt"].tensor, degree), graph)
    classes = [decision.block.class_key for decision in resolved.blocks]
    assert len(set(classes)) < len(classes)
    words = {decision.block.index: decision.output_word for decision in resolved.blocks}
    boundary = boundary_placements(graph, words, degree)
    for decision in resolved.blocks:
        block = decision.block
        outputs = tuple(boundary[value] for value in block.outputs)
        own = propagate(block, degree, resolved.parameter_placements, boundary, outputs)
        assert decision.sharding == own


def test_missing_decisions_in_the_order_of_the_file() -> None:
    assert missing_decisions(gpt_plan()) == ()
    assert missing_decisions(replace(gpt_plan(), zero=None, micro_batch=None)) == ("batch.micro", "zero")
    assert missing_decisions(Plan())[0] == "batch.global"
    alone = replace(gpt_plan(1), tensor=(), activations=())
    assert missing_decisions(alone) == ()


def test_incomplete_plan_names_the_command() -> None:
    fails(
        gpt_plan(recompute=()), r"plan\.yaml.*leaves recompute to the solver; complete it with `autopar plan"
    )


def test_error_stands_at_its_line() -> None:
    plan = replace(
        gpt_plan(
            tensor=(*lines(GPT), PatternLine("blocks.*.attn.qvk", "column"), PatternLine("*", "replicate"))
        ),
        places={"tensor": Place(10, 1), "tensor.blocks.*.attn.qvk": Place(14, 3)},
    )
    fails(plan, r"^plan\.yaml:14:3: 'tensor' names 'blocks\.\*\.attn\.qvk', which is no parameter")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": ModelReference("gpt.py", {}, "feed")}, "the plan is for the model feed, this one is"),
        ({"cluster": ClusterReference("cpu", 1, 8)}, r"mesh 1 x 1 x 2 is 2 devices, but the cluster has 8"),
        ({"global_batch": 6}, r"micro 4 x data 1 does not divide the global batch 6; use a multiple of 4"),
        (
            {"stages": (("wte", "wpe", "blocks.0", "blocks.1", "ln_f", "lm_haed", "loss"),)},
            "did you mean 'lm_head'",
        ),
        ({"stages": (("wte", "wpe", "blocks.0", "blocks.1", "ln_f", "lm_head"),)}, "no stage holds loss"),
        ({"stages": (("wte", "wte"),)}, "stage 0 names 'wte', which stage 0 already holds"),
        ({"stages": (("wpe", "wte"),)}, "stage 0 names 'wte' after 'wpe', but the model runs it before"),
        ({"stages": ((),)}, "stage 0 holds no block"),
        ({"mesh": Mesh(2, 1, 2)}, r"there are 1 stages for mesh\.pipeline 2 x virtual 1; make 2 lists"),
        (
            {"activations": lines({"block.*": "sequence", "*": "replicate"})},
            r"'activations' names 'block\.\*'",
        ),
        (
            {"activations": lines({"*": "sequnce"})},
            "'sequnce' cannot flow between blocks; did you mean 'sequence'",
        ),
        ({"activations": lines({"blocks.*": "sequence"})}, "no line of 'activations' names block wte"),
        (
            {"recompute": lines({"blocks.7": "full", "*": "none"})},
            "'recompute' names 'blocks.7', which is no block",
        ),
        ({"recompute": lines({"*": "ful"})}, "'ful' is no way to recompute; did you mean 'full'"),
        ({"recompute": lines({"blocks.*": "full"})}, "no line of 'recompute' names block wte"),
        ({"offload": "parameters"}, "offload of parameters needs zero: 3, but zero is 0"),
        (
            {"mesh": Mesh(1, 4, 2), "global_batch": 16, "shard_group": 3},
            r"shard_group 3 does not divide mesh\.data 4; .* write shard_group: 4",
        ),
        ({"schedule": ScheduleName.ZBV, "virtual": 1}, "'zbv' runs two stages on each rank, not 1"),
        ({"schedule": ScheduleName.ZBV}, "leaves pipeline.virtual to the solver"),
        (
            {"schedule": ScheduleName.INTERLEAVED, "virtual": 1},
            "'interleaved' runs several stages on each rank, not 1",
        ),
        ({"zero": 4}, "ZeRO level 4 does not exist"),
        ({"tensor": lines({"wte": "vocab"})}, "no line of 'tensor' names wpe.weight and mesh.tensor is 2"),
        ({"tensor": lines({"wte": "colum", "*": "replicate"})}, "'colum' is no placement of a parameter"),
        (
            {"tensor": lines({"wte": "shard(2)", "*": "replicate"})},
            "dim 2 does not exist: the shape is 64, 32",
        ),
        (
            {"tensor": lines({"ln_f": "vocab", "*": "replicate"})},
            "'vocab' has no meaning for this weight of a norm",
        ),
        ({"operators": lines({"blocks.0:ad#0": "replicate -> replicate"})}, "did you mean 'blocks.0:add#0'"),
        (
            {"operators": lines({"blocks.0:add#0": "shard(7) -> partial"})},
            "'blocks.0:add#0' cannot run as 'shard",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_plan_is_an_error(changes: dict[str, Any], match: str) -> None:
    fails(gpt_plan(**changes), match)


def test_dim_that_does_not_divide_lists_the_legal_degrees() -> None:
    plan = replace(
        gpt_plan(), mesh=Mesh(1, 1, 3), tensor=lines({"blocks.*.mlp.fc": "column", "*": "replicate"})
    )
    fails(
        plan, "dim 0 of size 128 does not divide by tensor 3; legal degrees are 1, 2, 4, 8, 16, 32, 64, 128"
    )


def test_fused_dim_that_does_not_divide() -> None:
    plan = replace(
        gpt_plan(), mesh=Mesh(1, 1, 64), tensor=lines({"blocks.*.attn.qkv": "column", "*": "replicate"})
    )
    fails(
        plan,
        "size 96, made of 3 fused parts, does not divide by tensor 64; legal degrees are 1, 2, 4, 8, 16, 32",
    )


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("gpt", "blocks.*.attn.qkv"),
        ("hf-gpt2", "transformer.h.*.attn.c_attn"),
        ("hf-llama", "model.layers.*.self_attn.k_proj"),
        ("hf-bert", "bert.encoder.layer.*.attention.self.query"),
        ("hf-t5", "encoder.block.*.layer.*.SelfAttention.q"),
    ],
)
def test_heads_that_do_not_divide_list_the_legal_degrees(name: str, pattern: str) -> None:
    _, graph = load(name)
    plan = replace(plan_for(graph, {pattern: "column"}, 8), path="plan.yaml")
    fails(plan, "its 4 heads do not divide by tensor 8; legal degrees are 1, 2, 4", name)


def test_packed_projection_of_multihead_attention_is_three_parts_not_three_heads() -> None:
    encoder = Path(__file__).parents[1] / "e2e" / "models" / "encoder.py"
    graph = capture(load_target(str(encoder)), torch.float64).at(MICRO_BATCH)
    name = next(name for name in graph.parameters if name.endswith("in_proj_weight"))
    plan = plan_for(graph, {name: "column", name.replace("weight", "bias"): "column"}, 2)
    assert resolve(plan, graph).parameter_placements[name] == Shard(0, 3)


def test_explicit_shard_needs_no_whole_heads() -> None:
    _, graph = load("gpt")
    resolved = resolve(plan_for(graph, {"blocks.*.attn.qkv": "shard(0)"}, 8), graph)
    assert resolved.parameter_placements["blocks.0.attn.qkv.weight"] == Shard(0, 3)


def test_operator_patterns() -> None:
    assert names_operator("blocks.*.attn:linear#0", "blocks.3.attn:linear#0")
    assert names_operator("blocks.0-3:add#1", "blocks.2:add#1")
    assert not names_operator("blocks.*:add#1", "blocks.2:add#0")
    assert not names_operator("blocks.*:add#1", "blocks.2.attn:add#1")
    assert not names_operator("blocks.2", "blocks.2:add#1")


def test_a_weight_tied_within_a_rank_is_divided_in_all_its_stages_or_in_none() -> None:
    stages = (("wte", "wpe"), ("blocks.0",), ("blocks.1",), ("ln_f", "lm_head", "loss"))
    changes = {
        "mesh": Mesh(2, 2, 1),
        "global_batch": 16,
        "stages": stages,
        "schedule": ScheduleName.ZBV,
        "virtual": 2,
        "tensor": (),
        "activations": (),
    }
    _, graph = load("gpt")
    assert resolve(gpt_plan(1, **changes, zero=(1, 0, 0, 3)), graph).num_stages == 4
    fails(
        gpt_plan(1, **changes, zero=(1, 1, 1, 0)),
        r"stages 0 and 3 are on one rank and share wte\.weight, but have ZeRO levels 1 and 0",
    )
    interleaved = {**changes, "schedule": ScheduleName.INTERLEAVED}
    assert resolve(gpt_plan(1, **interleaved, zero=(1, 1, 1, 0)), graph).num_stages == 4


class TruncatedBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:3]:
            x = layer(x)
        return x.square().mean()


def test_a_line_for_many_leaves_layers_alone_that_are_not_used() -> None:
    source = ModelSource("", {}, TruncatedBackbone, lambda size: {"x": torch.rand(size, 8)})
    graph = capture(source, torch.float32).at(4)
    words = {"layers.*": "column", "*": "replicate"}
    found = resolve(plan_for(graph, words, 2), graph).parameter_placements
    assert found["layers.2.weight"] == Shard(0) and found["layers.3.weight"] == REPLICATE
    with pytest.raises(PlanError, match=r"cannot hold for layers\.3\.weight"):
        resolve(plan_for(graph, {"layers.3.weight": "column", **words}, 2), graph)
