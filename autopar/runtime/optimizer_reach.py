"""How far an optimiser looks: most treat each element by itself, some a whole matrix or all parameters.

What a rank holds is enough for the former. The latter would compute something else from pieces, from fused
weights in their stored shape, or from one stage of a pipeline, and seldom notice. Nor would a script that
tells biases from matrices by their dims, of which the bias of a fused layer is stored with two. And of some
updates torch has no form for tensors that are spread over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from autopar.errors import UsageError
from autopar.runtime.storage import StoredParameter

_WHOLE_MATRIX = frozenset({"Adafactor"})
_WHOLE_MODEL = frozenset({"LBFGS"})
_MATRICES_ALONE = frozenset({"Muon"})
_WRITES_BY_MASK = frozenset({"Rprop"})
_FUSED_FOR_DTENSORS = frozenset({"Adam", "AdamW"})
_REMEDY = "take one that treats each element by itself, such as AdamW, Adam or SGD"


def check_reach(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    forms: Mapping[str, StoredParameter],
    num_stage_ranks: int,
) -> None:
    """Refuses an optimiser that looks further than this rank can see.

    Args:
        parameters: what this rank's optimisers may hold, by canonical name.
        forms: how they are stored.
        num_stage_ranks: ranks on the pipeline axis.

    Raises:
        UsageError: names the optimiser and the parameter that is not whole.
    """
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    if not kinds & (_WHOLE_MATRIX | _WHOLE_MODEL):
        return
    name = type(optimizer).__name__
    if kinds & _WHOLE_MODEL and num_stage_ranks > 1:
        raise UsageError(
            f"{name} looks at all parameters at once, of which a rank of this pipeline of {num_stage_ranks}"
            f" holds some; {_REMEDY}, or a plan with mesh.pipeline 1"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for key, parameter in parameters.items():
        if id(parameter) not in held:
            continue
        if isinstance(parameter, DTensor) and (kinds & _WHOLE_MODEL or _is_piece(parameter)):
            raise UsageError(
                f"{name} looks at whole parameters, and '{key}' of shape {forms[key].shape} is spread over"
                f" ranks; {_REMEDY}, or a plan with zero 0 and mesh.tensor 1"
            )
        if kinds & _WHOLE_MATRIX and forms[key].fused:
            raise UsageError(
                f"{name} looks at rows and columns, and '{key}', of shape {forms[key].shape}, is stored as"
                f" {forms[key].stored_shape} under every plan; {_REMEDY}"
            )


def check_dispatch(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuses an update that torch does not know for distributed tensors, before torch raises in its midst.

    Args:
        parameters: what this rank's optimisers may hold, by canonical name.

    Raises:
        UsageError: names the optimiser, the parameter, and an update that does.
    """
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    name = type(optimizer).__name__
    names = {id(parameter): key for key, parameter in parameters.items() if isinstance(parameter, DTensor)}
    for group in optimizer.param_groups:
        held = [p for p in group["params"] if id(p) in names]
        pieces = [p for p in held if _is_piece(p)]
        if pieces and kinds & _WRITES_BY_MASK:
            raise UsageError(
                f"{name} writes to elements chosen by a mask, which torch cannot do with"
                f" '{names[id(pieces[0])]}', spread over ranks; take another one, such as AdamW, Adam or"
                " SGD, or a plan with zero 0 and mesh.tensor 1"
            )
        if held and group.get("fused") and not kinds & _FUSED_FOR_DTENSORS:
            raise UsageError(
                f"{name}(fused=True) has no form in torch for distributed tensors, such as"
                f" '{names[id(held[0])]}'; leave fused=True out (foreach=True does the same, a little slower)"
            )


def check_groups(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    forms: Mapping[str, StoredParameter],
) -> None:
    """Refuses the bias of a fused layer among matrices, where none of the model's other vectors is.

    So it comes about when groups are made by ``parameter.ndim``, as for weight decay of matrices alone.

    Args:
        parameters: what this rank's optimisers may hold, by canonical name.
        forms: how they are stored.

    Raises:
        UsageError: names the bias.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    has_vectors = any(_is_vector(form) and not form.fused for form in forms.values() if form.requires_grad)
    is_for_matrices = any(kind.__name__ in _MATRICES_ALONE for kind in type(optimizer).__mro__)
    for group in optimizer.param_groups:
        held = [forms[names[id(p)]] for p in group["params"] if names.get(id(p)) in forms]
        bias = next((form for form in held if _is_vector(form) and form.fused), None)
        whole = [form for form in held if not form.fused]
        is_sorted_by_dims = has_vectors and whole and not any(map(_is_vector, whole))
        if bias is not None and (is_for_matrices or is_sorted_by_dims):
            raise UsageError(
                f"{type(optimizer).__name__} holds '{bias.name}', of shape {bias.shape}, among matrices: it"
                f" is stored as {bias.stored_shape} under every plan; tell biases by name"
                " (name.endswith('bias')), not by their number of dims, or give it a group of its own"
            )


def _is_vector(form: StoredParameter) -> bool:
    return len(form.shape) < 2


def _is_piece(parameter: DTensor) -> bool:
    return any(placement.is_shard() for placement in parameter.placements)
