"""How far an optimiser looks: most treat each element by itself, some a whole matrix or all parameters.

What a rank holds is enough for the former. The latter would compute something else from pieces, from fused
weights in their stored shape, or from one stage of a pipeline, and seldom notice.
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


def _is_piece(parameter: DTensor) -> bool:
    return any(placement.is_shard() for placement in parameter.placements)
