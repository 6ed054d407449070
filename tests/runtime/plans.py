"""Complete plans for tests, by hand."""

from itertools import pairwise

from autopar.plan.decisions import Mesh, PatternLine, Plan, Precision, Recompute, ScheduleName


def make_plan(
    graph,
    *,
    pipeline=1,
    data=1,
    tensor=1,
    num_micro_batches=2,
    schedule="1f1b",
    zero=0,
    recompute="none",
    lines=(),
    activations="replicate",
    cuts=None,
    precision="fp32",
    virtual=1,
    order=None,
    shard_group=None,
    offload="none",
):
    """``cuts``: first block of every stage but the first; default: even."""
    names = [block.name for block in graph.blocks]
    num_stages = pipeline * virtual
    cuts = cuts or [len(names) * k // num_stages for k in range(1, num_stages)]
    bounds = [0, *cuts, len(names)]
    return Plan(
        global_batch=graph.micro_batch * num_micro_batches * data,
        micro_batch=graph.micro_batch,
        mesh=Mesh(pipeline, data, tensor, order and tuple(order.split())),
        precision=Precision(precision),
        optimizer="adamw",
        schedule=ScheduleName(schedule),
        virtual=virtual,
        stages=tuple(tuple(names[a:b]) for a, b in pairwise(bounds)),
        tensor=(*(PatternLine(pattern, word) for pattern, word in lines), PatternLine("*", "replicate")),
        activations=(PatternLine("*", activations),),
        zero=zero,
        shard_group=shard_group,
        recompute=(PatternLine("*", Recompute(recompute).value),),
        offload=offload,
    )


GPT_TENSOR = (
    ("wte", "vocab"),
    ("blocks.*.qkv", "column"),
    ("blocks.*.proj", "row"),
    ("blocks.*.fc", "column"),
    ("blocks.*.out", "row"),
)
