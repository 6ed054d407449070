"""A Hugging Face ``config.json`` as a target: model class, arguments and an example batch follow from it."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.target import ModelSource
from autopar.errors import UsageError, closest_match
from autopar.plan.decisions import Scalar

_OWN_ARGUMENTS = ("seq", "dropout", "image_size")
_DEFAULT_SEQ = 1024  # tokens, or fewer where the model's positions end earlier
_DEFAULT_IMAGE_SIZE = 224  # pixels a side, as in ImageNet training
_IGNORED = -100  # label that cross entropy skips
_MASKED_EVERY = 7  # BERT masks 15% of the tokens: every seventh

# Heads in the order in which one is chosen when the config names no class, with what marks them in a class
# name.
_HEADS = (
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "ForImageClassification"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "ForConditionalGeneration"),
    ("MODEL_FOR_MASKED_LM_MAPPING", "ForMaskedLM"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING", "ForCausalLM"),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "ForSequenceClassification"),
)
_HEADS_BY_SUFFIX = (*(suffix for _, suffix in _HEADS), "LMHeadModel")


def load_config_target(target: str, path: Path, args: Mapping[str, Scalar]) -> ModelSource:
    """The source for a config file or its folder.

    ``args`` override fields of the config; besides there are ``seq``, ``dropout`` and ``image_size``.

    Raises:
        UsageError: no such file, no transformers, an unknown model or argument.
    """
    fields, file = _read(target, path)
    transformers = _import_transformers(target)
    config = _make_config(transformers, target, file, fields, args)
    model_class = _model_class(transformers, target, config, fields)
    example_batch = _example_batch(target, config, model_class, args)

    def build_model() -> nn.Module:
        # A config keeps what a model derives from it: each model gets one of its own.
        config = _make_config(transformers, target, file, fields, args)
        if model_class.__name__.endswith("LMHeadModel"):
            config.loss_type = "ForCausalLM"  # transformers reads it off the class name, but not off this one
        model: nn.Module = model_class(config)
        return model

    return ModelSource(target, dict(args), build_model, example_batch)


def _read(target: str, path: Path) -> tuple[dict[str, Any], Path]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"target '{target}': there is no file '{file}'")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise UsageError(f"{file}: not a Hugging Face model config: it has no 'model_type'")
    for name in ("dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    return fields, file


def _import_transformers(target: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a config is all that is needed; nothing is fetched
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside transformers' own imports
            import transformers
    except ImportError as error:
        raise UsageError(
            f"target '{target}' is a Hugging Face config, which needs transformers: pip install 'autopar[hf]'"
        ) from error
    return transformers


def _make_config(
    transformers: Any, target: str, file: Path, fields: Mapping[str, Any], args: Mapping[str, Scalar]
) -> Any:
    model_type = fields["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        known = list(transformers.CONFIG_MAPPING.keys())
        raise UsageError(
            f"{file}: transformers knows no model_type '{model_type}'{closest_match(model_type, known)}"
        )
    config_class = transformers.CONFIG_MAPPING[model_type]
    values = {name: value for name, value in fields.items() if name != "model_type"}
    known_fields = {*config_class().to_dict(), *config_class.attribute_map, "num_labels"}
    for name, value in args.items():
        field = config_class.attribute_map.get(name, name)
        if name in known_fields:
            values[field] = _typed(
                target, name, value, values.get(field, getattr(config_class(), field, None))
            )
        elif name not in _OWN_ARGUMENTS:
            public = [known for known in known_fields if not known.startswith("_")]
            raise UsageError(
                f"target '{target}': {config_class.__name__} has no field '{name}'"
                f"{closest_match(name, [*public, *_OWN_ARGUMENTS])}"
            )
    if "num_labels" in values:
        values.pop("id2label", None)
        values.pop("label2id", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = config_class(**values)
    except Exception as error:  # transformers validates fields with errors of many kinds
        raise UsageError(f"{file}: {config_class.__name__} refuses these fields: {error}") from error
    if getattr(config, "use_cache", False):
        config.use_cache = False
    if "dropout" in args:
        _set_dropout(config, target, args["dropout"])
    return config


def _typed(target: str, name: str, value: Scalar, present: Any) -> Any:
    """A list field may be given as text: ``--arg depths=[1,1]``."""
    if not isinstance(present, list | tuple) or not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, list):
        raise UsageError(
            f"target '{target}': {name}={value} is not a list; write it like {name}={list(present)}"
        )
    return parsed


def _set_dropout(config: Any, target: str, value: Scalar) -> None:
    names = [
        n for n in config.to_dict() if ("dropout" in n or n.endswith("_pdrop")) and not n.startswith("layer")
    ]
    numeric = [name for name in names if isinstance(getattr(config, name, None), int | float)]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(
            f"target '{target}': dropout={value} is not a probability; give a number from 0 to below 1"
        )
    for name in numeric:
        setattr(config, name, value)


def _model_class(transformers: Any, target: str, config: Any, fields: Mapping[str, Any]) -> Any:
    """The class that ``architectures`` names if it has a head to train, else the model type's natural one."""
    for name in fields.get("architectures") or ():
        if name.endswith(_HEADS_BY_SUFFIX) and hasattr(transformers, name):
            return getattr(transformers, name)
    for mapping, _ in _HEADS:
        known = getattr(transformers, mapping)
        if type(config) in known:
            found = known[type(config)]
            return found[0] if isinstance(found, tuple) else found  # several variants, the plain one first
    raise UsageError(
        f"target '{target}': autopar knows no training head for model_type '{config.model_type}'; "
        "write a model file with build_model() and example_batch() instead"
    )


def _example_batch(
    target: str, config: Any, model_class: Any, args: Mapping[str, Scalar]
) -> Callable[[int], dict[str, Tensor]]:
    class_name = model_class.__name__
    inputs = list(inspect.signature(model_class.forward).parameters)[1:]
    if not {"input_ids", "pixel_values"} & set(inputs):
        raise UsageError(
            f"target '{target}': {class_name} reads '{inputs[0]}', for which autopar has no example; "
            "write a model file with build_model() and example_batch() instead"
        )
    if class_name.endswith("ForImageClassification"):
        if "seq" in args:
            raise UsageError(f"target '{target}': {class_name} reads images, so it takes no seq")
        sizes = getattr(config, "vision_config", config)  # of a model of images and texts
        size = _positive(target, "image_size", args.get("image_size", getattr(sizes, "image_size", None)))
        return _image_batch(sizes, config.num_labels, size or _DEFAULT_IMAGE_SIZE)
    if "image_size" in args:
        raise UsageError(f"target '{target}': {class_name} takes no images, so no image_size")
    texts = config if hasattr(config, "vocab_size") else config.get_text_config()
    positions = _num_positions(texts)
    wanted = _positive(target, "seq", args.get("seq"))
    seq = wanted or min(_DEFAULT_SEQ, positions or _DEFAULT_SEQ)
    if positions and seq > positions:
        raise UsageError(
            f"target '{target}': seq={seq} is longer than the model's {positions} positions; "
            "raise max_position_embeddings (or n_positions) with --arg too"
        )
    vocab = getattr(texts, "vocab_size", None)
    if not isinstance(vocab, int):
        raise UsageError(
            f"target '{target}': {class_name} reads texts, but its config has no vocab_size; add the "
            "field, or write a model file with build_model() and example_batch() instead"
        )
    if class_name.endswith("ForMaskedLM"):
        return _masked_batch(vocab, seq)
    if class_name.endswith("ForSequenceClassification"):
        return _sequence_class_batch(vocab, seq, config.num_labels)
    if class_name.endswith("ForConditionalGeneration"):
        return _translation_batch(vocab, seq)
    return _causal_batch(vocab, seq)


def _num_positions(texts: Any) -> int | None:
    """Tokens of the longest text; None where it may have any length, for which XLNet's config says -1."""
    positions = getattr(texts, "max_position_embeddings", None) or getattr(texts, "n_positions", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _positive(target: str, name: str, value: Any) -> int | None:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"target '{target}': {name}={value} is not a positive whole number")
    return value


def _causal_batch(vocab: int, seq: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(batch_size: int) -> dict[str, Tensor]:
        tokens = torch.randint(0, vocab, (batch_size, seq))
        return {"input_ids": tokens, "labels": tokens.clone()}  # the model shifts the labels itself

    return batch


def _masked_batch(vocab: int, seq: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(batch_size: int) -> dict[str, Tensor]:
        tokens = torch.randint(0, vocab, (batch_size, seq))
        masked = (torch.arange(seq) % _MASKED_EVERY == 0).expand(batch_size, seq)
        # The mask token's number depends on the tokenizer; for cost and gradients any token will do.
        return {"input_ids": tokens.masked_fill(masked, 0), "labels": tokens.masked_fill(~masked, _IGNORED)}

    return batch


def _translation_batch(vocab: int, seq: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(batch_size: int) -> dict[str, Tensor]:
        shape = (batch_size, seq)
        return {"input_ids": torch.randint(0, vocab, shape), "labels": torch.randint(0, vocab, shape)}

    return batch


def _sequence_class_batch(vocab: int, seq: int, num_labels: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(batch_size: int) -> dict[str, Tensor]:
        tokens = torch.randint(0, vocab, (batch_size, seq))
        return {"input_ids": tokens, "labels": torch.randint(0, num_labels, (batch_size,))}

    return batch


def _image_batch(sizes: Any, num_labels: int, size: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(batch_size: int) -> dict[str, Tensor]:
        return {
            "pixel_values": torch.randn(batch_size, sizes.num_channels, size, size),
            "labels": torch.randint(0, num_labels, (batch_size,)),
        }

    return batch
