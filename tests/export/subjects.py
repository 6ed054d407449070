"""Small plans bound to small models, for exporters."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import ModelSource, load_target
from autopar.export.subject import Subject, subject_of
from autopar.plan.merge import override
from autopar.plan.pins import parse_sets
from autopar.plan.read import parse_plan
from tests.plan.texts import mapping, plan_text

EXAMPLES = Path(__file__).parents[2] / "examples"
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "seq": 16,
}

GPT_PLAN = plan_text(
    ["wte, wpe, blocks.0-1", "blocks.2-3, ln_f, lm_head, loss"],
    model=mapping(
        {
            "source": f"{EXAMPLES}/gpt.py",
            "args": "{n_layer: 4, n_embd: 32, n_head: 4, seq: 16, vocab: 64, tied: false}",
        }
    ),
    cluster="{device: a100-sxm-80gb, nodes: 1, devices_per_node: 8}",
    batch="{global: 16, micro: 2}",
    mesh="{pipeline: 2, data: 2, tensor: 2}",
    precision="bf16",
    tensor=mapping(
        {
            "wte": "vocab",
            "blocks.*.attn.qkv": "column",
            "blocks.*.attn.proj": "row",
            "blocks.*.mlp.fc": "column",
            "blocks.*.mlp.proj": "row",
            "lm_head": "column",
            '"*"': "replicate",
        }
    ),
    activations='{wpe: sequence, blocks.*: sequence, lm_head: shard(2), "*": replicate}',
    zero="1",
)

ANYWHERE = "\n".join(line for line in GPT_PLAN.splitlines() if not line.startswith("cluster")) + "\n"

_LLAMA_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_LLAMA_ROWS = ("self_attn.o_proj", "mlp.down_proj")
LLAMA_PLAN = plan_text(
    ["model.embed_tokens, model.layers.0-1, model.norm, lm_head, loss"],
    model=mapping(
        {
            "source": f"{EXAMPLES}/hf/llama",
            "args": f"{{{', '.join(f'{name}: {value}' for name, value in LLAMA.items())}}}",
        }
    ),
    batch="{global: 4, micro: 2}",
    mesh="{pipeline: 1, data: 1, tensor: 2}",
    tensor=mapping(
        {
            **{f"model.layers.*.{name}": "column" for name in _LLAMA_COLUMNS},
            **{f"model.layers.*.{name}": "row" for name in _LLAMA_ROWS},
            '"*"': "replicate",
        }
    ),
    activations="replicate",
)


@cache
def loaded(target: str, args: tuple[tuple[str, int | bool], ...]) -> tuple[ModelSource, Capture]:
    source = load_target(target, dict(args))
    return source, capture(source, torch.float32)


def subject(*changes: str, text: str = GPT_PLAN) -> Subject:
    """The plan with ``--set`` changes, beside its model."""
    plan = override(parse_plan(text), parse_sets(list(changes)))
    assert plan.model is not None
    source, captured = loaded(plan.model.source, tuple(plan.model.args.items()))  # type: ignore[arg-type]
    return subject_of(plan, source, captured)
