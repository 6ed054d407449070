"""Options of optimisers (learning rate, weight decay, ...) in a checkpoint: by parameter.

Which groups a rank has is a matter of the plan. Groups with a learning rate for each layer, say, are those
of this rank's layers: a rank of a pipeline has others than the next one, and another plan has others
again. Where every rank has the same list, it is kept by position too, for groups of which a rank holds no
parameter.

The text: ``{"groups": [{"options": {...}, "parameters": [names]}], "positions": [options] or null}``. That of
older checkpoints is the list of positions alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopar.errors import UsageError

Options = dict[str, Any]
_OWN_TO_A_RANK = frozenset({"params", "param_names"})


def describe_groups(
    optimizers: Sequence[torch.optim.Optimizer], names: Mapping[nn.Parameter, str], group: dist.ProcessGroup
) -> str:
    """The groups of all ranks as a text, the same on each; a collective of all ranks.

    Args:
        names: of what the optimisers hold.
        group: of all ranks.

    Raises:
        UsageError: ranks that share a parameter have given it different options.
    """
    own = [(_options(x), _names(x, names)) for x in _groups(optimizers)]
    given = {key for optimizer in optimizers for key in optimizer.defaults}  # the rest is the optimiser's own
    found: list[list[tuple[Options, list[str]]]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(found, own, group=group)
    joined: list[tuple[Options, dict[str, None]]] = []
    place_of: dict[str, int] = {}
    for rank, groups in enumerate(found):
        for options, held in groups:
            known = next((place_of[name] for name in held if name in place_of), None)
            if known is None:
                known = len(joined)
                joined.append((options, {}))
            for name in held:
                difference = _difference(joined[place_of.setdefault(name, known)][0], options, given)
                if difference:
                    raise UsageError(
                        f"rank {rank} has given '{name}' other options than a rank before it ({difference}),"
                        " and they make different values of it; choose options by the names of parameters,"
                        " not by their place among those of one rank"
                    )
            joined[known][1].update(dict.fromkeys(held))
    lists = [[options for options, _ in groups] for groups in found]
    return json.dumps(
        {
            "groups": [{"options": options, "parameters": list(held)} for options, held in joined if held],
            "positions": lists[0] if all(x == lists[0] for x in lists) else None,
        }
    )


def options_to_restore(
    text: str, optimizers: Sequence[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]
) -> list[Options]:
    """What a checkpoint says of each group of the optimisers given; empty where it says nothing.

    Raises:
        UsageError: they have other groups than were saved.
    """
    described: Any = json.loads(text)
    groups = _groups(optimizers)
    if isinstance(described, list):
        if len(described) != len(groups):
            raise UsageError(
                f"the checkpoint was saved from optimisers with {len(described)} parameter groups, those"
                f" given have {len(groups)}; give as many optimisers, in the same order, and make them with"
                " the same groups"
            )
        return described
    positions: list[Options] = described["positions"] or []
    saved: list[dict[str, Any]] = described["groups"]
    place_of = {name: place for place, entry in enumerate(saved) for name in entry["parameters"]}
    taken: dict[int, str] = {}
    found: list[Options] = []
    for index, group in enumerate(groups):
        held = [name for name in _names(group, names) if name in place_of]
        places = dict.fromkeys(place_of[name] for name in held)
        for place in places:
            if place in taken:
                raise UsageError(
                    f"'{taken[place]}' and '{held[0]}' were in one parameter group when the checkpoint was"
                    " saved, and are in two now; make the optimisers with the groups that they had"
                )
            taken[place] = held[0]
        distinct = [saved[place]["options"] for place in places]
        difference = next(filter(None, (_difference(distinct[0], x, x) for x in distinct)), "")
        if difference:
            raise UsageError(
                f"parameters of one group, that of '{held[0]}', had different options when the checkpoint was"
                f" saved ({difference}); make the optimisers with the groups that they had"
            )
        if distinct:
            found.append(distinct[0])
        else:
            found.append(positions[index] if len(positions) == len(groups) else {})
    return found


def restore_options(optimizers: Sequence[torch.optim.Optimizer], options: Sequence[Options]) -> None:
    """Sets what ``options_to_restore`` has found."""
    for group, saved in zip(_groups(optimizers), options, strict=True):
        for key, value in saved.items():
            if key in _OWN_TO_A_RANK:
                continue
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value


def _groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _names(group: Mapping[str, Any], names: Mapping[nn.Parameter, str]) -> list[str]:
    return [names[parameter] for parameter in group["params"] if parameter in names]


def _options(group: Mapping[str, Any]) -> Options:
    """What of a group can be written down, in the form in which it is read again."""
    kept = {
        key: value.item() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key not in _OWN_TO_A_RANK
        and isinstance(value, (Tensor, bool, int, float, str, tuple, list, type(None)))
    }
    written: Options = json.loads(json.dumps(kept))
    return written


def _difference(first: Options, second: Options, keys: Collection[str]) -> str:
    """The first of some options in which two groups differ, with both values; empty if there is none."""
    differing = (key for key in sorted(keys) if first.get(key) != second.get(key))
    return next((f"{key} {second.get(key)} and {first.get(key)}" for key in differing), "")
