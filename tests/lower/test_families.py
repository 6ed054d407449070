"""Families of models from transformers under random tensor-parallel plans: equal to the plain blocks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.lower.resolve import resolve
from autopar.verify.without_dropout import without_dropout
from tests.lower.chain import assert_same, run_plain, run_sharded
from tests.lower.models import MICRO_BATCH, tensors_of
from tests.lower.test_random_plans import random_plan

pytestmark = pytest.mark.slow

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 16,
}
_LLAMA = {**_TEXT, "num_key_value_heads": 2}
_IMAGE = {
    **{key: _TEXT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 4,
}
_PAIR = {
    **{f"{side}_{name}": value for side in ("encoder", "decoder")
       for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()},
    "d_model": 32, "vocab_size": 64, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
_DEBERTA = {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {**_TEXT, "embedding_size": 16, "num_hidden_layers": 3},  # all layers share their parameters
    "bart": _PAIR,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "clip": {"projection_dim": 16, "text_config": {**_TEXT, "eos_token_id": 63},
             "vision_config": {**_IMAGE, "patch_size": 8}},
    "convbert": {**_TEXT, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32,
                 "patch_size": 4, "num_labels": 4},
    "deberta": {**_DEBERTA, "max_relative_positions": 8},
    "deberta-v2": {**_DEBERTA, "position_buckets": 4},
    "deit": _IMAGE,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 64,
                   "max_position_embeddings": 16},
    "electra": {**_TEXT, "embedding_size": 16},
    "falcon": {key: value for key, value in _TEXT.items() if key != "intermediate_size"},
    "fnet": {key: value for key, value in _TEXT.items() if key != "num_attention_heads"},
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1],
               "vocab_size": 64},
    "gemma2": {**_LLAMA, "head_dim": 8, "sliding_window": 4,
               "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": {**_TEXT, "use_parallel_residual": True},
    "gemma3": {"text_config": {**_LLAMA, "head_dim": 8, "sliding_window": 4,
                               "layer_types": ["sliding_attention", "full_attention"]},
               "vision_config": {**_IMAGE, "patch_size": 8}, "mm_tokens_per_image": 4},
    "layoutlm": _TEXT,  # its mask is made of ones times the least number of the dtype
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 64},
    "mistral": {**_LLAMA, "sliding_window": 4},
    "mobilevit": {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_labels": 4,
                  "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
            "vocab_size": 64, "max_position_embeddings": 16, "word_embed_proj_dim": 32},
    "phi": {**_LLAMA, "num_key_value_heads": 4},
    "qwen2": _LLAMA,
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
             "window_size": 4, "num_labels": 4, "drop_path_rate": 0.0},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 64},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_random_plans_equal_plain_blocks(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **FAMILIES[name]}))
    has_text = "vocab_size" in FAMILIES[name] or name == "gemma3"
    source = load_target(str(tmp_path), {"seq": 8} if has_text else {})
    graph, _ = without_dropout(capture(source, torch.float64).at(MICRO_BATCH))
    state, batch = tensors_of(source)
    plain = run_plain(graph, state, batch)
    for degree in (2, 4):
        plan = random_plan(graph, random.Random(f"{name} {degree}"), degree)
        assert_same(run_sharded(resolve(plan, graph), state, batch), plain, 1e-7)
