"""The example models in toy sizes, with Megatron-like tensor sections, captured in float64."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from autopar.capture.capture import capture
from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource, load_target
from autopar.plan.decisions import Mesh, PatternLine, Plan, Precision, ScheduleName

EXAMPLES = Path(__file__).parents[2] / "examples"
MICRO_BATCH = 4


@dataclass(frozen=True)
class ToyModel:
    """An example, its toy size, and the lines of a tensor section for it."""

    target: str
    args: dict[str, Any]
    tensor: dict[str, str]
    vocab: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-10


_TINY = {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_SMALL_VOCAB = {"vocab_size": 64, "max_position_embeddings": 32}
_LLAMA_LINES = {
    f"model.layers.*.{name}": word
    for name, word in {
        "self_attn.q_proj": "column",
        "self_attn.k_proj": "column",
        "self_attn.v_proj": "column",
        "self_attn.o_proj": "row",
        "mlp.gate_proj": "column",
        "mlp.up_proj": "column",
        "mlp.down_proj": "row",
    }.items()
}
# transformers computes norms and losses in float32 whatever the dtype of the model: errors are of that size.
_FLOAT32 = 1e-5

MODELS = {
    "gpt": ToyModel(
        "gpt.py",
        {"n_layer": 2, "n_embd": 32, "n_head": 4, "seq": 16, "vocab": 64},
        {
            "blocks.*.attn.qkv": "column",
            "blocks.*.attn.proj": "row",
            "blocks.*.mlp.fc": "column",
            "blocks.*.mlp.proj": "row",
        },
        {"wte": "vocab"},
    ),
    "resnet": ToyModel(
        "resnet.py", {"depth": 18, "width": 8, "image_size": 32, "num_classes": 12}, {"head": "column"}
    ),
    "perception": ToyModel(
        "perception.py",
        {"width": 8, "hidden": 32, "num_frames": 4, "image_size": 16, "num_convs": 2, "num_lstm_layers": 2},
        {"perception.0": "column", "perception.1.conv": "row", "planner.0": "column", "planner.2": "row"},
    ),
    "recommender": ToyModel(
        "recommender.py",
        {"num_users": 64, "num_items": 32, "dim": 8},
        {"user": "column", "item": "column"},
        {"user": "vocab", "item": "vocab", "user_bias": "vocab", "item_bias": "vocab"},
    ),
    "hf-gpt2": ToyModel(
        "hf/gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 16}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        {
            "transformer.h.*.attn.c_attn": "column",
            "transformer.h.*.attn.c_proj": "row",
            "transformer.h.*.mlp.c_fc": "column",
            "transformer.h.*.mlp.c_proj": "row",
        },
        {"transformer.wte": "vocab"},
        tolerance=_FLOAT32,
    ),
    "hf-llama": ToyModel(
        "hf/llama",
        _TINY | _SMALL_VOCAB | {"num_key_value_heads": 4},
        _LLAMA_LINES,
        {"model.embed_tokens": "vocab", "lm_head": "vocab"},
        tolerance=_FLOAT32,
    ),
    "hf-bert": ToyModel(
        "hf/bert",
        _TINY | _SMALL_VOCAB | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        {
            "bert.encoder.layer.*.attention.self": "column",
            "bert.encoder.layer.*.attention.output.dense": "row",
            "bert.encoder.layer.*.intermediate": "column",
            "bert.encoder.layer.*.output.dense": "row",
        },
        {"bert.embeddings.word_embeddings": "vocab", "cls.predictions.decoder": "vocab"},
    ),
    "hf-t5": ToyModel(
        "hf/t5",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        | {"vocab_size": 64, "dropout_rate": 0.0, "n_positions": 16},
        {
            f"{stack}.block.*.layer.*.{name}": word
            for stack in ("encoder", "decoder")
            for name, word in {
                "SelfAttention.q": "column",
                "SelfAttention.k": "column",
                "SelfAttention.v": "column",
                "SelfAttention.o": "row",
                "SelfAttention.relative_attention_bias": "column",
                "EncDecAttention.q": "column",
                "EncDecAttention.k": "column",
                "EncDecAttention.v": "column",
                "EncDecAttention.o": "row",
                "DenseReluDense.wi": "column",
                "DenseReluDense.wo": "row",
            }.items()
            if not (stack == "encoder" and "EncDec" in name)
        },
        {"shared": "vocab"},
        tolerance=_FLOAT32,
    ),
    "hf-vit": ToyModel(
        "hf/vit",
        _TINY | {"image_size": 16, "patch_size": 4},
        {
            "vit.layers.*.attention.q_proj": "column",
            "vit.layers.*.attention.k_proj": "column",
            "vit.layers.*.attention.v_proj": "column",
            "vit.layers.*.attention.o_proj": "row",
            "vit.layers.*.mlp.fc1": "column",
            "vit.layers.*.mlp.fc2": "row",
        },
    ),
    "hf-resnet": ToyModel(
        "hf/resnet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {
            "resnet.encoder.stages.*.layers.*.layer.0": "column",
            "resnet.encoder.stages.*.layers.*.layer.1.convolution": "row",
        },
    ),
    "hf-mixtral": ToyModel(
        "hf/mixtral",
        _TINY | _SMALL_VOCAB | {"num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
        {line: word for line, word in _LLAMA_LINES.items() if "self_attn" in line},
        {"model.embed_tokens": "vocab", "lm_head": "vocab"},
        tolerance=_FLOAT32,
    ),
}


@cache
def load(name: str) -> tuple[ModelSource, ModelGraph]:
    """The toy model, captured once a session."""
    model = MODELS[name]
    if not model.target.startswith("hf/"):
        source = load_target(str(EXAMPLES / model.target), model.args)
    else:
        config = json.loads((EXAMPLES / model.target / "config.json").read_text()) | model.args
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            source = load_target(folder)
    return source, capture(source, torch.float64).at(MICRO_BATCH)


def tensors_of(source: ModelSource) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers, and a batch, in float64, the same in every call."""
    torch.manual_seed(0)
    module = source.build_model().double().train()
    state = dict(module.named_parameters(remove_duplicate=False))
    state |= dict(module.named_buffers(remove_duplicate=False))
    torch.manual_seed(1)
    batch = source.example_batch(MICRO_BATCH)
    return state, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def plan_for(
    graph: ModelGraph,
    tensor: dict[str, str],
    degree: int,
    activations: dict[str, str] | None = None,
    operators: dict[str, str] | None = None,
) -> Plan:
    """A complete plan with one stage and the given tensor lines; everything else replicated."""
    return Plan(
        global_batch=MICRO_BATCH,
        micro_batch=MICRO_BATCH,
        mesh=Mesh(1, 1, degree),
        precision=Precision.FP32,
        schedule=ScheduleName.GPIPE,
        stages=(tuple(block.name for block in graph.blocks),),
        tensor=lines({**tensor, "*": "replicate"}),
        activations=lines({"*": "replicate"} if activations is None else activations),
        operators=lines(operators or {}),
        zero=0,
        recompute=lines({"*": "none"}),
    )


def lines(words: dict[str, str]) -> tuple[PatternLine, ...]:
    return tuple(PatternLine(pattern, word) for pattern, word in words.items())
