"""A published run in the words of the product: arguments of the model file, cluster, pinned plan; or why
not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from published.runs import Run
from published.software import with_software

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, cluster_of
from autopar.plan.decisions import Mesh, PatternLine, Plan, Precision, ScheduleName

_PRECISIONS = {
    "fp16": Precision.FP16,
    "bf16": Precision.BF16,
    "amp_bf16": Precision.BF16,
}
_TENSOR = (
    PatternLine("wte", "vocab"),
    PatternLine("blocks.*.attn.qkv", "column"),
    PatternLine("blocks.*.attn.q", "column"),
    PatternLine("blocks.*.attn.k", "column"),
    PatternLine("blocks.*.attn.v", "column"),
    PatternLine("blocks.*.attn.proj", "row"),
    PatternLine("blocks.*.mlp.up", "column"),
    PatternLine("blocks.*.mlp.gate", "column"),
    PatternLine("blocks.*.mlp.down", "row"),
    PatternLine("lm_head", "vocab"),
    PatternLine("*", "replicate"),
)
# Share of a Llama layer's product FLOPs that torchtitan's selective-op recompute computes again: it saves
# every second product (q, v, up, down of q, k, v, o, gate/up, down).
_EVERY_SECOND = "selective-op (save every 2nd mm + sdpa)"
_EVERY_OTHER_LAYER = "selective layer (every other layer)"


@dataclass(frozen=True, slots=True)
class Expressed:
    """What is predicted for a run.

    Attributes:
        arguments: of the model file.
        cluster: devices and links as the source states them.
    """

    run: Run
    arguments: dict[str, int | bool | float]
    cluster: Cluster
    precision: Precision


def reason_not_expressed(run: Run) -> str | None:
    """Why the plan language cannot say what ran; None if it can."""
    if run.precision not in _PRECISIONS:
        return "fp8 products: the language has bf16, fp16 and fp32"
    if run.context > 1:
        return "context parallelism: the mesh has no such axis"
    if "async TP" in run.notes:
        return "asynchronous tensor parallelism: collectives of the tensor axis are exposed here"
    return None


def express(run: Run) -> Expressed:
    """The run in the product's words; only for runs that can be expressed."""
    return Expressed(run, model_arguments(run), cluster_for(run), _PRECISIONS[run.precision])


def model_arguments(run: Run) -> dict[str, int | bool | float]:
    """Arguments of ``language_model.py``.

    Megatron pads the vocabulary to a multiple of 128 x tensor degree; 51,200 is that of 50,257 at degree 8,
    and what every Megatron run states.
    """
    megatron = run.framework.startswith("Megatron")
    llama = run.family == "llama"
    compiled = "torch.compile" in run.framework
    # The tables of December 2024 (torchtitan 9dec370, 2024-12-26) compiled the layers and not the loss, which
    # pull request 755 had switched off days before (pytorch issue 143774); later ones compiled both.
    compiled_loss = compiled and not run.source_ref.startswith("Table")
    return {
        "layers": run.layers,
        "hidden": run.hidden,
        "heads": run.heads,
        "kv_heads": run.kv_heads,
        "ffn": run.ffn,
        "seq": run.seq,
        "vocab": 51200 if megatron else run.vocab,
        "gated": run.gated,
        "rotary": llama,
        "rms": llama,
        "bias": megatron,
        "flash": run.flash,
        "tied": not llama,
        "dropout": 0.1 if megatron else 0.0,
        "fused": megatron or compiled,
        "compiled_loss": compiled_loss,
    }


def cluster_for(run: Run) -> Cluster:
    """The devices of a run, with the network cards and the software that the source states."""
    per_node = min(run.devices_per_node, run.num_devices)
    return _cluster(run.hardware, run.framework, run.num_devices, per_node, run.internode_gbit_per_gpu)


@lru_cache(maxsize=256)
def _cluster(
    hardware: str, framework: str, num_devices: int, per_node: int, gbit_per_device: float | None
) -> Cluster:
    device = with_software(load_device(_device_name(hardware)), framework)
    if "96GB-HBM2e" in hardware:  # as the source states of its H100s
        device = replace(device, memory_bytes=95 * 2**30, memory_bytes_per_s=2.4e12)
    cluster = cluster_of(device, num_devices, per_node)
    if "DGX-2" in hardware:  # through its NVSwitch a pair of devices has all links, unlike in a DGX-1
        curves = cluster.intra_node.curves[-1:]
        cluster = replace(cluster, intra_node=replace(cluster.intra_node, curves=curves))
    if gbit_per_device is None:
        return cluster
    return replace(cluster, network=replace(cluster.network, bytes_per_s=gbit_per_device * 1e9 / 8))


def _device_name(hardware: str) -> str:
    for mark, name in (
        ("V100", "v100-sxm-32gb"),
        ("A100-40GB", "a100-sxm-40gb"),
        ("A100", "a100-sxm-80gb"),
        ("H100", "h100-sxm-80gb"),
        ("H200", "h200-sxm-141gb"),
    ):
        if mark in hardware:
            return name
    raise ValueError(f"no cost model for '{hardware}'")


def pinned_plan(run: Run, blocks: Sequence[str]) -> Plan:
    """The plan that ran, complete, for a model with these blocks."""
    sharded = run.tensor > 1
    return Plan(
        global_batch=run.global_batch,
        micro_batch=run.micro_batch,
        mesh=Mesh(run.pipeline, run.data, run.tensor),
        precision=_PRECISIONS[run.precision],
        optimizer="adamw",
        schedule=ScheduleName.INTERLEAVED if run.virtual > 1 else ScheduleName.ONE_F_ONE_B,
        virtual=run.virtual,
        stages=stages_of(blocks, run.pipeline * run.virtual),
        tensor=tuple(line for line in _TENSOR if _names_something(line.pattern, run)) if sharded else (),
        activations=_activations(run) if sharded else (),
        zero=0 if not run.zero[0].isdigit() else int(run.zero[0]),
        recompute=_recompute(run),
        offload="none",
    )


def stages_of(blocks: Sequence[str], num_stages: int) -> tuple[tuple[str, ...], ...]:
    """Equally many transformer blocks a stage; the embeddings in the first, the head in the last."""
    layers = [i for i, name in enumerate(blocks) if name.startswith("blocks.")]
    cuts = [0]
    for stage in range(1, num_stages):
        cuts.append(layers[0] + stage * len(layers) // num_stages)
    cuts.append(len(blocks))
    return tuple(tuple(blocks[a:b]) for a, b in pairwise(cuts))


def _names_something(pattern: str, run: Run) -> bool:
    """Whether the model of the run has modules of this name: lines that name nothing are errors."""
    separate = run.family == "llama"
    if pattern.endswith((".q", ".k", ".v")):
        return separate
    if pattern.endswith(".qkv"):
        return not separate
    return run.gated or not pattern.endswith(".gate")


def _activations(run: Run) -> tuple[PatternLine, ...]:
    """Logits stay divided over the vocabulary, in Megatron as in torchtitan (its loss parallelism)."""
    rest = (PatternLine("lm_head", "shard(2)"), PatternLine("*", "replicate"))
    if not run.sequence_parallel:
        return rest
    embeddings = ("wte",) if run.family == "llama" else ("wte", "wpe")
    return (*(PatternLine(name, "sequence") for name in (*embeddings, "blocks.*", "ln_f")), *rest)


def _recompute(run: Run) -> tuple[PatternLine, ...]:
    rest = PatternLine("*", "none")
    words = run.recompute
    if words.startswith("full"):
        return (PatternLine("blocks.*", "full"), rest)
    if words == "selective":
        return (PatternLine("blocks.*", "selective"), rest)
    if words == _EVERY_OTHER_LAYER:
        full = (PatternLine(f"blocks.{i}", "full") for i in range(0, run.layers, 2))
        return (*full, rest)
    if words == _EVERY_SECOND:
        # The word "selective" keeps all products; the same FLOPs are computed again if every third block is
        # computed again as a whole (Llama 3: k, o and gate or up are 37% of the products).
        full = (PatternLine(f"blocks.{i}", "full") for i in range(0, run.layers, 3))
        return (*full, PatternLine("blocks.*", "selective"), rest)
    assert words == "none", words
    return (rest,)
