"""The model, its batches and its loss in a PyTorch script: of a model file, or of transformers."""

from __future__ import annotations

from pathlib import PurePath

from autopar.export.subject import ExportedEntry, Subject


def load_model(subject: Subject, left_out: list[str]) -> str:
    """The model as ``model``, a function ``batch`` and a function ``loss_of``."""
    samples = f"{subject.plan.micro_batch} * num_micro_batches"
    write = _of_a_file if subject.settings is None else _of_transformers
    loading, batch = write(subject, samples, left_out)
    return f"""
num_micro_batches = {subject.plan.num_micro_batches}
torch.manual_seed(0)  # the same weights on every rank{loading}
{batch}

example = batch()
inputs = [name for name in inspect.signature(model.forward).parameters if name in example]
"""


def _of_transformers(subject: Subject, samples: str, left_out: list[str]) -> tuple[str, str]:
    model = subject.plan.model
    assert model is not None
    left_out.append("model: random weights of the configuration, and random samples; load your own")
    if "dropout" in model.args:
        left_out.append("model.args.dropout: set the configuration's own fields, which differ between models")
    settings = dict(subject.settings or {})
    settings.pop("dropout", None)
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    loading = f"""
config = transformers.AutoConfig.from_pretrained({model.source!r}{arguments})
model = transformers.{subject.model_class}(config).to(device)
"""
    entries = ", ".join(f'"{one.name}": {_sample(one, subject, samples)}' for one in subject.batch)
    batch = f"""
def batch():
    return {{{entries}}}


def loss_of(output, _):
    return output.loss
"""
    return loading, batch


def _sample(entry: ExportedEntry, subject: Subject, samples: str) -> str:
    """Random values for an entry of a batch of transformers."""
    shape = f"({', '.join((samples, *map(str, entry.shape)))},)"
    if entry.name == "pixel_values":
        return f"torch.randn({shape}, device=device)"
    of_tokens = any(one.name == "input_ids" and one.shape == entry.shape for one in subject.batch)
    return f"torch.randint(config.{'vocab_size' if of_tokens else 'num_labels'}, {shape}, device=device)"


def _of_a_file(subject: Subject, samples: str, _: list[str]) -> tuple[str, str]:
    model = subject.plan.model
    assert model is not None
    place, _colon, factory = model.source.rpartition(":")
    if not (place and factory.isidentifier()):
        place, factory = model.source, "build_model"
    build = f"model_file.{factory}"
    loading = f"""
{_imported(place)}
arguments = {dict(model.args)!r}


def accepted(function):
    known = inspect.signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in known.values())
    return {{name: value for name, value in arguments.items() if takes_any or name in known}}


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


def _imported(place: str) -> str:
    """The lines that import ``path.py`` or ``package.module``."""
    if not place.endswith(".py"):
        return f"model_file = importlib.import_module({place!r})"
    return f"""sys.path.insert(0, {str(PurePath(place).parent)!r})  # for the files beside it
spec = importlib.util.spec_from_file_location("model_file", {place!r})
model_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_file)"""
