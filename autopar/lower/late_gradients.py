"""Gradients of whole parameters of which every tensor rank has a summand: added up once a step.

Where activations are sharded (by sequence, by batch), a replicated parameter, the weight of a norm say,
receives a summand of its gradient on every rank. The lowered program adds them up at every use, in every
micro-batch. Where all uses of a parameter are of this kind, that may wait: each rank adds up its own summands
first.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from autopar.lower import collectives


def late_parameters(program: fx.GraphModule, parameters: Collection[str]) -> frozenset[str]:
    """Those of a program's placeholders ``parameters`` whose gradients are summands at every use."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return frozenset(
        node.name
        for node in placeholders
        if node.name in parameters and node.users and all(_adds_up(user, node) for user in node.users)
    )


def without_sums(program: fx.GraphModule, parameters: Collection[str]) -> fx.GraphModule:
    """The same program with the gradients of ``parameters``, all late ones, left as summands."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        source = node.args[1] if node.target is collectives.copy_to else None
        if isinstance(source, fx.Node) and source.op == "placeholder" and source.name in parameters:
            values[node] = values[source]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def _adds_up(user: fx.Node, parameter: fx.Node) -> bool:
    return user.target is collectives.copy_to and user.args[1] is parameter
