"""Every key of a plan file with the kind of its value: what is read, written, and said to editors."""

from __future__ import annotations

from autopar.plan.composed_kinds import Arguments, Key, Order, Patterns, Predicted, Section, Several, Zero
from autopar.plan.decisions import MESH_AXES, Precision, Recompute, ScheduleName
from autopar.plan.kinds import OneOf, Placement, Size, Text, Whole, Word, YesNo
from autopar.plan.stage_kinds import Stages, StageSizes

VERSION = 1
OPTIMIZERS = ("adamw", "adam", "sgd", "sgd-momentum")
TENSOR_WORDS = ("column", "row", "vocab", "replicate")
ACTIVATION_WORDS = ("replicate", "sequence", "batch")
OFFLOAD_WORDS = ("none", "optimizer", "parameters", "activations")
MOST_NODES = 1_000_000
BOUNDED = (*(f"mesh.{axis}" for axis in MESH_AXES), "batch.micro", "pipeline.virtual", "zero", "shard_group")
"""Keys that take a bound (``"<=4"``, ``">=2"``, ``2-8``) in place of a number."""

_DEGREE = Whole(bounded=True)

_MODEL = Section(
    {
        "source": Key(
            Text("examples/gpt.py"),
            "path.py, path.py:factory, package.module:factory or a config.json",
            "examples/gpt.py",
        ),
        "args": Key(Arguments(), "what build_model is called with"),
        "fingerprint": Key(
            Text('"3f9c0a" (quote it if it is all digits)'), "for another model the plan is refused"
        ),
    }
)

_CLUSTER = Section(
    {
        "device": Key(Text("h100-sxm-80gb"), "name of a cost model, or path of its file", "h100-sxm-80gb"),
        "nodes": Key(Whole(1, MOST_NODES), "equal nodes; 1 where it is not said"),
        "devices_per_node": Key(Whole(1, MOST_NODES), "devices of each node", "8"),
        "file": Key(Text("cluster.yaml"), "the cluster file that says how the devices are joined"),
        "memory_limit": Key(Size(), "of a device, where not all of its memory may be used"),
    }
)

_BATCH = Section(
    {
        "global": Key(Whole(), "samples per optimiser step, over all devices"),
        "micro": Key(Whole(bounded=True), "samples per forward of one data rank"),
    }
)

_MESH = Section(
    {
        "pipeline": Key(_DEGREE, "ranks on the pipeline axis"),
        "data": Key(_DEGREE, "ranks on the data axis"),
        "tensor": Key(_DEGREE, "ranks on the tensor axis"),
        "order": Key(Order(), "the axes, the one that varies slowest over the ranks first"),
    }
)

_PIPELINE = Section(
    {
        "schedule": Key(Word(tuple(str(name) for name in ScheduleName)), "in which order stages run"),
        "virtual": Key(_DEGREE, "stages that a rank holds: interleaved 2 or more, zbv 2"),
        "stages": Key(Stages(), "every block exactly once, in order; ranges are inclusive"),
        "blocks_per_stage": Key(
            StageSizes(), 'bounds on the blocks of stages: {0: "<=10", last: 2-8, "*": ">=2"}'
        ),
    }
)

PLAN = Section(
    {
        "version": Key(Whole(), "of the plan language"),
        "model": Key(_MODEL, "which model the plan is for"),
        "cluster": Key(_CLUSTER, "which devices the plan is for"),
        "batch": Key(_BATCH, "global = micro x micro-batches x mesh.data"),
        "mesh": Key(_MESH, "degrees that multiply to the number of devices"),
        "precision": Key(
            Word(tuple(str(name) for name in Precision)), "compute dtype; master weights are fp32"
        ),
        "optimizer": Key(Word(OPTIMIZERS), "for the bytes of its state"),
        "pipeline": Key(_PIPELINE, "the stages and how they run"),
        "tensor": Key(Patterns(Placement(TENSOR_WORDS)), "parameters by module name; the first match wins"),
        "activations": Key(Patterns(Placement(ACTIVATION_WORDS)), "what flows out of a block"),
        "operators": Key(
            Patterns(Text('"shard(2), replicate -> shard(2)"'), single=False),
            "inner operators that are split otherwise than the placements lead to",
        ),
        "zero": Key(Zero(), "over data, 1 splits optimizer state, 2 gradients too, 3 parameters too"),
        "shard_group": Key(_DEGREE, "neighbouring data ranks among which zero splits"),
        "recompute": Key(
            Patterns(OneOf(tuple(str(word) for word in Recompute))), "what backward computes again, by block"
        ),
        "offload": Key(Several(OFFLOAD_WORDS), "what lives in host memory"),
        "compile": Key(YesNo(), "torch.compile between the collectives"),
        "predicted": Key(Predicted(), "written by autopar for people"),
    }
)
"""The whole file."""

SECTIONS = {
    name: tuple(key.kind.keys) if isinstance(key.kind, Section) else () for name, key in PLAN.keys.items()
}
"""Every key of a plan with the keys below it, in the order in which they are written."""
