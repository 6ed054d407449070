"""The model, its batches and its loss in a PyTorch script: of a model file, or of transformers."""

from __future__ import annotations

from autopar.export.subject import Subject
from autopar.plan.decisions import ModelReference


def load_model(subject: Subject, left_out: list[str]) -> str:
    """The model as ``model``, a function ``batch`` and a function ``loss_of``."""
    assert subject.plan.model is not None
    write = _of_transformers if subject.is_hugging_face else _of_a_file
    loading, batch = write(subject.plan.model, f"{subject.plan.micro_batch} * num_micro_batches")
    if subject.is_hugging_face:
        left_out.append("model: random weights of the configuration, and random tokens; load your own")
    return f"""
num_micro_batches = {subject.plan.num_micro_batches}
torch.manual_seed(0)  # the same weights on every rank{loading}
{batch}

example = batch()
inputs = [name for name in inspect.signature(model.forward).parameters if name in example]
labels = [name for name in example if name not in inputs]
"""


def _of_transformers(model: ModelReference, samples: str) -> tuple[str, str]:
    arguments = dict(model.args)
    source, seq = f"{model.source!r}", arguments.pop("seq", 128)
    settings = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    loading = f"""
config = transformers.AutoConfig.from_pretrained({source}, {settings})
model = getattr(transformers, config.architectures[0])(config).to(device)
"""
    batch = f"""
def batch():
    tokens = torch.randint(config.vocab_size, ({samples}, {seq}), device=device)
    return {{"input_ids": tokens, "labels": tokens}}


def loss_of(output, _):
    return output.loss
"""
    return loading, batch


def _of_a_file(model: ModelReference, samples: str) -> tuple[str, str]:
    file, _, factory = model.source.partition(":")
    build = f"model_file.{factory or 'build_model'}"
    loading = f"""
spec = importlib.util.spec_from_file_location("model_file", {file!r})
model_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_file)
arguments = {dict(model.args)!r}


def accepted(function):
    known = inspect.signature(function).parameters
    return {{name: value for name, value in arguments.items() if name in known}}


model = {build}(**accepted({build})).to(device)
"""
    batch = f"""
def batch():
    entries = model_file.example_batch(
        {samples}, **accepted(model_file.example_batch)
    )
    return {{name: value.to(device) for name, value in entries.items()}}


def loss_of(output, entries):
    return model_file.loss(output, entries) if hasattr(model_file, "loss") else output
"""
    return loading, batch
