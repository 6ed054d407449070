"""What the user points at: a model file, a function of a package, or a Hugging Face ``config.json``.

A model file offers ``build_model(**args) -> nn.Module`` and ``example_batch(batch_size, **args) -> dict of
tensors``; ``loss(output, batch) -> scalar`` unless the module returns a loss itself; and ``batch_dims`` where
the batch is not dim 0.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

from autopar.capture.user_code import error_line
from autopar.errors import UsageError, closest_match
from autopar.plan.decisions import Scalar

T = TypeVar("T")

_MISSING = {
    "build_model": """\
    def build_model(n_layer: int = 12) -> torch.nn.Module:
        return MyModel(n_layer)""",
    "example_batch": """\
    def example_batch(batch_size: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(batch_size, 16), "target": torch.randn(batch_size, 1)}""",
}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be built, and what it is trained on.

    Attributes:
        target: as the user typed it.
        args: arguments bound into ``build_model`` and ``example_batch``.
        build_model: builds the module; takes nothing.
        example_batch: batch size -> entries of one micro-batch, by name.
        loss: (module's output, batch) -> scalar; None where the module returns the loss itself.
        batch_dims: batch entry -> the dim that counts samples; 0 where absent, None where it is the same for
            all samples.
    """

    target: str
    args: Mapping[str, Scalar]
    build_model: Callable[[], nn.Module]
    example_batch: Callable[[int], dict[str, Tensor]]
    loss: Callable[[Any, dict[str, Tensor]], Tensor] | None = None
    batch_dims: Mapping[str, int | None] = field(default_factory=dict)


def load_target(target: str, args: Mapping[str, Scalar] | None = None) -> ModelSource:
    """Loads ``path.py[:factory]``, ``package.module:factory`` or a Hugging Face ``config.json`` or folder.

    Raises:
        UsageError: the target does not exist, lacks a function, or does not know an argument; the message
            shows what to add.
    """
    args = dict(args or {})
    path_text, factory = _split_factory(target)
    path = Path(path_text)
    if path.is_dir() or path.suffix == ".json":
        if factory:
            raise UsageError(f"target '{target}': a Hugging Face config takes no ':{factory}'")
        from autopar.capture.hugging_face import load_config_target

        return load_config_target(target, path, args)
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"target '{target}': there is no file '{path}'{_similar_file(path)}")
        module = _import_file(path)
    elif factory:
        module = _import_module(path_text, target)
    else:
        raise UsageError(
            f"target '{target}' is not a model; give path.py, path.py:factory, package.module:factory, "
            "or a folder or file with a Hugging Face config.json"
        )
    build_model = _function(module, factory or "build_model", target)
    example_batch = _function(module, "example_batch", target)
    return source_from_functions(
        build_model,
        example_batch,
        loss=getattr(module, "loss", None),
        batch_dims=getattr(module, "batch_dims", None),
        args=args,
        target=target,
    )


def source_from_functions(
    build_model: Callable[..., nn.Module],
    example_batch: Callable[..., dict[str, Tensor]],
    loss: Callable[[Any, dict[str, Tensor]], Tensor] | None = None,
    batch_dims: Mapping[str, int | None] | None = None,
    args: Mapping[str, Scalar] | None = None,
    target: str = "",
) -> ModelSource:
    """Binds a user's functions and arguments into a source.

    Each of ``args`` goes to those of ``build_model`` and ``example_batch`` whose signature names it.

    Raises:
        UsageError: an argument that neither takes.
    """
    args = dict(args or {})
    where = target or getattr(build_model, "__qualname__", "build_model")
    accepted, takes_any = _accepted_arguments(build_model)
    batch_accepted, batch_takes_any = _accepted_arguments(example_batch)
    known = sorted(accepted | batch_accepted)
    for name in args:
        if name not in known and not takes_any and not batch_takes_any:
            factory = getattr(build_model, "__name__", "build_model")
            raise UsageError(
                f"{where}: neither {factory}() nor example_batch() takes an argument '{name}'"
                f"{closest_match(name, known)} (they take: {', '.join(known) or 'none'})"
            )
    model_args = {name: value for name, value in args.items() if name in accepted or takes_any}
    batch_args = {name: value for name, value in args.items() if name in batch_accepted or batch_takes_any}

    def build() -> nn.Module:
        model = _call(lambda: build_model(**model_args), where, "build_model()")
        if not isinstance(model, nn.Module):
            raise UsageError(f"{where}: build_model() returned {type(model).__name__}, not a torch.nn.Module")
        return model

    def batch(batch_size: int) -> dict[str, Tensor]:
        entries = _call(
            lambda: example_batch(batch_size, **batch_args), where, f"example_batch({batch_size})"
        )
        _check_batch(entries, batch_size, dict(batch_dims or {}), where)
        return dict(entries)

    return ModelSource(where, args, build, batch, loss, dict(batch_dims or {}))


def _split_factory(target: str) -> tuple[str, str | None]:
    head, colon, tail = target.rpartition(":")
    return (head, tail) if colon and tail.isidentifier() else (target, None)


def _similar_file(path: Path) -> str:
    folder = path.parent
    return closest_match(path.name, [entry.name for entry in folder.glob("*.py")]) if folder.is_dir() else ""


def _import_file(path: Path) -> ModuleType:
    resolved = path.resolve()
    name = f"autopar_target_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling inside the user's file look the module up
    sys.path.insert(
        0, str(resolved.parent)
    )  # files beside the model can be imported, as when it is run as a script
    loader = spec.loader
    try:
        _call(lambda: loader.exec_module(module), str(path), "the file")
    finally:
        sys.path.remove(str(resolved.parent))
    return module


def _import_module(name: str, target: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(
            f"target '{target}': there is no module '{name}' on the Python path, nor a file of that name"
        )
    return _call(lambda: importlib.import_module(name), target, f"module {name}")


def _function(module: ModuleType, name: str, target: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    lines = _MISSING.get(name)
    remedy = f"; add for example:\n\n{lines}\n" if lines else ""
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise UsageError(f"{target}: the file has no function '{name}'{closest_match(name, known)}{remedy}")


def _accepted_arguments(function: Callable[..., Any]) -> tuple[set[str], bool]:
    parameters = inspect.signature(function).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named - {"batch_size"}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _call(function: Callable[[], T], where: str, what: str) -> T:
    # The user's code runs here: a mistake of his is shown at his line, without a traceback through ours.
    try:
        return function()
    except UsageError:
        raise
    except Exception as error:
        line = error_line(error)
        raise UsageError(f"{line or where}: {what} raised {type(error).__name__}: {error}") from error


def _remedy_for(value: object) -> str:
    if isinstance(value, int | float):
        return "make it a tensor, with batch_dims None if it is the same for all samples"
    if value is None or isinstance(value, str | bytes):
        return "leave it out: what is no tensor is an argument of build_model(), or a default of forward()"
    if isinstance(value, Mapping | tuple | list):
        return "give its tensors as entries of their own, and put them together in forward()"
    return "make it a tensor"


def _check_batch(entries: object, batch_size: int, batch_dims: dict[str, int | None], where: str) -> None:
    if not isinstance(entries, Mapping) or not entries:
        given = (
            f"an empty {type(entries).__name__}" if isinstance(entries, Mapping) else type(entries).__name__
        )
        raise UsageError(f"{where}: example_batch() must return a dict of tensors, not {given}")
    for name in entries:
        if not isinstance(name, str) or not name.isidentifier() or iskeyword(name) or name == "self":
            raise UsageError(
                f"{where}: example_batch() names an entry {name!r}, by which forward() cannot take it; use a"
                " name of letters, digits and underscores"
            )
    for name in batch_dims:
        if name not in entries:
            raise UsageError(
                f"{where}: batch_dims names '{name}', which example_batch() lacks"
                f"{closest_match(name, entries)}"
            )
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"{where}: example_batch()['{name}'] is a {type(value).__name__}, not a tensor;"
                f" {_remedy_for(value)}"
            )
        dim = batch_dims.get(name, 0)
        if dim is not None and (value.dim() <= dim or value.shape[dim] != batch_size):
            raise UsageError(
                f"{where}: example_batch({batch_size})['{name}'] has shape {tuple(value.shape)}, "
                f"whose dim {dim} is not the batch size; if another dim is, say so: "
                f"batch_dims = {{'{name}': 1}}, or None where the entry is the same for all samples"
            )
    if all(batch_dims.get(name, 0) is None for name in entries):
        raise UsageError(
            f"{where}: batch_dims says of every entry of example_batch() that it is the same for all "
            "samples; one must count them"
        )
