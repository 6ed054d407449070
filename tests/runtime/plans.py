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
):
    """``cuts``: first block of every stage but the first; default: even."""
    names = [block.name for block in graph.blocks]
    cuts = cuts or [len(names) * k // pipeline for k in range(1, pipeline)]
    bounds = [0, *cuts, len(names)]
    return Plan(
        global_batch=graph.micro_batch * num_micro_batches * data,
        micro_batch=graph.micro_batch,
        mesh=Mesh(pipeline, data, tensor),
        precision=Precision(precision),
        optimizer="adamw",
        schedule=ScheduleName(schedule),
        virtual=1,
        stages=tuple(tuple(names[a:b]) for a, b in pairwise(bounds)),
        tensor=(*(PatternLine(pattern, word) for pattern, word in lines), PatternLine("*", "replicate")),
        activations=(PatternLine("*", activations),),
        zero=zero,
        recompute=(PatternLine("*", Recompute(recompute).value),),
        offload="none",
    )


GPT_TENSOR = (
    ("wte", "vocab"),
    ("blocks.*.qkv", "column"),
    ("blocks.*.proj", "row"),
    ("blocks.*.fc", "column"),
    ("blocks.*.out", "row"),
)
