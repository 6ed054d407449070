"""The example models in sizes that run in a moment, by name."""

import os
import warnings
from functools import cache
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside transformers' own imports
    import transformers  # noqa: F401

from autopar.capture.capture import Capture, capture
from autopar.capture.target import ModelSource, load_target

EXAMPLES = Path(__file__).parents[2] / "examples"

_TINY_GPT = {"n_layer": 4, "n_embd": 32, "n_head": 4, "seq": 16, "vocab": 64}
_TINY_DECODER = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "seq": 16,
}
_TINY_ENCODER = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "dropout": 0.0,
}

SMALL = {
    "gpt": ("gpt.py", _TINY_GPT),
    "gpt-untied": ("gpt.py", {**_TINY_GPT, "n_layer": 2, "tied": False}),
    "resnet": ("resnet.py", {"depth": 18, "width": 4, "image_size": 64, "num_classes": 10}),
    "perception": (
        "perception.py",
        {"width": 4, "num_convs": 3, "hidden": 16, "num_frames": 3, "image_size": 16},
    ),
    "recommender": ("recommender.py", {"num_users": 50, "num_items": 40, "dim": 8}),
    "hf-gpt2": (
        "hf/gpt2",
        {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 64, "seq": 16, "dropout": 0.0}
        | {"bos_token_id": 0, "eos_token_id": 0},
    ),
    "hf-llama": ("hf/llama", _TINY_DECODER),
    "hf-bert": ("hf/bert", {**_TINY_ENCODER, "vocab_size": 64, "seq": 16}),
    "hf-t5": (
        "hf/t5",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
        | {"vocab_size": 64, "seq": 16, "dropout": 0.0},
    ),
    "hf-vit": ("hf/vit", {**_TINY_ENCODER, "image_size": 16, "patch_size": 8, "num_labels": 10}),
    "hf-resnet": (
        "hf/resnet",
        {"embedding_size": 8, "hidden_sizes": "[8, 16]", "depths": "[2, 3]", "layer_type": "basic"}
        | {"image_size": 32, "num_labels": 10},
    ),
    "hf-mixtral": ("hf/mixtral", {**_TINY_DECODER, "num_hidden_layers": 2, "num_local_experts": 4}),
}


def small_source(name: str, **args: object) -> ModelSource:
    target, defaults = SMALL[name]
    return load_target(str(EXAMPLES / target), {**defaults, **args})


@cache
def small_capture(name: str, dtype: torch.dtype = torch.float64) -> Capture:
    """Captures are immutable in effect, so that the tests of a session share them."""
    return capture(small_source(name), dtype)
