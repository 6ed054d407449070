"""Where a model may be cut: the modules that become blocks, read off the module tree.

The outermost list of alike modules gives one block per element (``blocks.0``, ``encoder.layer.3``). Where the
elements of a list differ, as the stages of a ResNet do, the lists inside them are taken. A model without such
a list is cut at its top-level children.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn


def choose_pieces(model: nn.Module, visited: Iterable[str]) -> dict[str, bool]:
    """Qualified names of the modules to cut at -> whether it is an element of a repeated list.

    ``visited`` names the modules in which the graph has operators.
    """
    used = {""}
    for name in visited:
        parts = name.split(".") if name else []
        used.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
    pieces: dict[str, bool] = {}
    _descend(model, "", used, pieces)
    if not any(pieces.values()):
        pieces = dict.fromkeys(_top_level(model, used), False)
    return pieces


def _children(module: nn.Module, path: str, used: set[str]) -> dict[str, nn.Module]:
    # Not named_children(): a module registered twice counts under each name by which it is called.
    named = {f"{path}.{name}" if path else name: child for name, child in module._modules.items()}
    return {name: child for name, child in named.items() if child is not None and name in used}


def _descend(module: nn.Module, path: str, used: set[str], pieces: dict[str, bool]) -> None:
    children = _children(module, path, used)
    if _is_list(children) and _alike(children.values()):
        pieces.update(dict.fromkeys(children, True))
    elif _holds_list(module, path, used):
        differ = _is_list(children) and not any(_holds_list(c, p, used) for p, c in children.items())
        for name, child in children.items():
            if differ:
                pieces[name] = True
            else:
                _descend(child, name, used, pieces)
    elif path:
        pieces[path] = False


def _top_level(module: nn.Module, used: set[str], path: str = "") -> list[str]:
    children = _children(module, path, used)
    if len(children) == 1:
        (name, child) = next(iter(children.items()))
        inner = _top_level(child, used, name)
        return inner or [name]
    return list(children)


def _is_list(children: Mapping[str, nn.Module]) -> bool:
    """Whether these are elements of a list: numbered, at least two, most of one class, made of modules."""
    numbered = [child for name, child in children.items() if name.rpartition(".")[2].isdigit()]
    if len(numbered) < 2 or len(numbered) < len(children):
        return False
    composite = [child for child in numbered if child._modules and any(True for _ in child.parameters())]
    classes = Counter(type(child) for child in composite)
    return bool(classes) and 2 * max(classes.values()) >= len(numbered) and max(classes.values()) >= 2


def _alike(children: Iterable[nn.Module]) -> bool:
    """Whether half of the elements have a sibling with which they share half of their parameters."""
    signatures = Counter(
        frozenset((name, tuple(parameter.shape)) for name, parameter in child.named_parameters())
        for child in children
    )
    num_alike = sum(
        count
        for signature, count in signatures.items()
        if count > 1 or any(_similar(signature, other) for other in signatures if other != signature)
    )
    return 2 * num_alike >= signatures.total()


def _similar(one: frozenset[object], other: frozenset[object]) -> bool:
    return bool(one and other) and 2 * len(one & other) >= min(len(one), len(other))


def _holds_list(module: nn.Module, path: str, used: set[str]) -> bool:
    children = _children(module, path, used)
    return _is_list(children) or any(_holds_list(child, name, used) for name, child in children.items())
