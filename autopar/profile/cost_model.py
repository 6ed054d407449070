"""From what was measured to a cost-model file (``hardware.read_device`` reads it back)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from autopar.cost.parameter_state import MASTER_BYTES, optimizer_cost
from autopar.hardware.catalog import find_local_device, load_device
from autopar.hardware.device import Device
from autopar.hardware.link import CollectiveKind
from autopar.plan.schema import editor_line
from autopar.profile.block_times import BlockTimes
from autopar.profile.entries import BORROWED, MEASURED, Document, borrowed, measured, rounded, seconds, width
from autopar.profile.link_entries import intra_node
from autopar.profile.settings import HOST_COPY_BYTES, ProfileResult
from autopar.profile.spread import Spread
from autopar.units import GiB

_PEAK_PRECISIONS = ("bf16", "fp16", "fp32")
_LEAST_OVERHEAD_ELEMENTS = 0.1
# What a process of the tiny model's step computes: product, bias, mean, and their gradients.
_TINY_OPERATORS = 4
# What is left of a difference of two measurements is at least this.
_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Products:
    """Matrix products of one precision.

    Attributes:
        rates: FLOP/s by cube edge, without the overhead of short reductions.
    """

    rates: tuple[tuple[int, float], ...]
    spread: float


def cost_model_text(result: ProfileResult, name: str) -> str:
    """The file.

    Args:
        name: of the device, as plans and tables show it.
    """
    machine, settings = result.machine, result.settings
    head = (
        f"{editor_line('cost-model')}\n"
        f"# Cost model of {settings.num_processes} x {machine.processor}, measured by `autopar profile` on"
        f" {machine.date}.\n"
        "# Medians of all ranks working at once; link bandwidths are per device, one direction; GB = 1e9"
        " bytes, GiB = 2**30.\n"
    )
    body = yaml.safe_dump(
        cost_model_document(result, name), sort_keys=False, default_flow_style=None, width=110
    )
    return head + str(body)


def cost_model_document(result: ProfileResult, name: str) -> Document:
    """The content of the file."""
    settings, machine = result.settings, result.machine
    is_gpu = settings.kind == "cuda"
    base = base_device(settings.kind, machine.processor)
    document: Document = {
        "version": 1,
        "name": name,
        "description": _description(result),
        "kind": "gpu" if is_gpu else "cpu",
        "sources": {MEASURED: _source(result), BORROWED: f"not measured: as in the cost model {base.name}"},
        "compute": _compute(result, base),
        "memory": _memory(result),
        "intra_node": intra_node(result, base),
        "network": {
            "kind": base.network.kind,
            "bandwidth_per_device": borrowed(base.network.bytes_per_s / 1e9, "GB/s"),
            "efficiency": borrowed(base.network.efficiency, "fraction"),
            "latency": borrowed(base.network.latency_s * 1e6, "us"),
        },
        "host": _host(result),
        "default_devices_per_node": measured(settings.num_processes, "devices"),
    }
    if result.blocks:
        document["blocks"] = _blocks(result.blocks)
    return document


def base_device(kind: str, processor: str) -> Device:
    """The device that comes along and is most like the one measured: what is not measured is as there."""
    if kind == "cuda":
        return find_local_device(processor) or load_device("h100-sxm-80gb")
    return load_device("cpu")


def _blocks(blocks: Sequence[BlockTimes]) -> Document:
    found: Document = {
        block.class_key: {
            "name": block.name,
            "precision": str(block.precision),
            "forward": seconds(block.forward),
            "backward": seconds(block.backward),
            **({"update": seconds(block.update)} if block.update is not None else {}),
        }
        for block in blocks
        if block.degree == 1
    }
    for block in blocks:
        if block.slowdown is not None:
            found[block.class_key].setdefault("sharded", {})[str(block.degree)] = {
                "forward": measured(block.slowdown.forward, "times", width(block.forward)),
                "backward": measured(block.slowdown.backward, "times", width(block.backward)),
            }
    return found


def _description(result: ProfileResult) -> str:
    machine, settings = result.machine, result.settings
    if settings.kind == "cuda":
        return f"{machine.processor}, measured"
    return (
        f"one of {settings.num_processes} processes on {machine.num_cores} cores of {machine.processor}, gloo"
    )


def _source(result: ProfileResult) -> str:
    machine, settings = result.machine, result.settings
    quick = " in little time (--quick)" if settings.quick else ""
    return (
        f"autopar profile{quick}, {machine.date}: {machine.processor}, {machine.versions};"
        f" {settings.num_processes} processes at once, {settings.num_passes} x {settings.num_repetitions}"
        " repetitions,"
        f" {result.elapsed_s:.0f} s; load before {result.load:.1f}"
    )


def _compute(result: ProfileResult, base: Device) -> Document:
    found, settings = result.compute, result.settings
    is_gpu = settings.kind == "cuda"
    overhead = _overhead_elements(result)
    products = {
        precision: _products(found.products, precision, overhead)
        for precision in _PEAK_PRECISIONS
        if any(key[0] == precision for key in found.products)
    }
    peaks = {precision: max(rate for _, rate in table.rates) for precision, table in products.items()}
    if is_gpu and base.path and find_local_device(result.machine.processor) is not None:
        peaks = {p: max(rate, base.peak_flops_per_s.get(p, 0.0)) for p, rate in peaks.items()}
    first = next(p for p in _PEAK_PRECISIONS if p in products)
    half = next((p for p in ("bf16", "fp16") if p in products), None)
    attention, flops = found.attention
    attention_rate = flops / 2 / attention.median_s
    operator_s = (found.operator.median_s + found.operator_backward.median_s) / 2
    document: Document = {
        "peak": {
            p: measured(peaks[p] / 1e12, "TFLOP/s", "the fastest product" if not is_gpu else "")
            if p in peaks
            else {"value": None, "unit": "TFLOP/s", "source": MEASURED}
            for p in _PEAK_PRECISIONS
        },
        "matmul_efficiency": {
            **({"half": _efficiency(products[half], peaks[half])} if half else {}),
            "fp32": _efficiency(products["fp32"], peaks["fp32"]),
        },
        "matmul_overhead": measured(overhead, "elements"),
        "attention_efficiency": measured(
            min(1.0, attention_rate / peaks[first]), "fraction", f"causal, forward; {width(attention)}"
        ),
        # On a CPU the process that dispatches is the one that computes: all of it is added.
        "launch": borrowed(base.launch_s * 1e6, "us") if is_gpu else measured(operator_s * 1e6, "us"),
        "dispatch": measured(operator_s * 1e6, "us", width(found.operator)),
        **_runtime(result, operator_s),
    }
    if not is_gpu:
        cores = f"{result.machine.num_cores} cores"
        document["time_share"] = measured(result.time_share, "devices", cores)
        document["overlap"] = {
            "value": None,
            "unit": "fraction",
            "source": MEASURED,
            "note": "gloo sends on the cores that compute",
        }
    return document


def _runtime(result: ProfileResult, operator_s: float) -> Document:
    """Overheads of the runtime, from steps of a model that computes next to nothing."""
    plain, sharded, piped = result.overheads.plain, result.overheads.sharded, result.overheads.piped
    few, micro_batch_s = plain.few, plain.micro_batch_s
    action_s = max(_LEAST_S, micro_batch_s / 2 - _TINY_OPERATORS * operator_s)
    synchronised_s = next(
        (
            spread.median_s
            for (kind, size, _), spread in sorted(result.communication.collectives.items())
            if kind is CollectiveKind.ALL_REDUCE and size == result.settings.num_processes
        ),
        0.0,
    )
    if result.time_share > 1:
        synchronised_s = 0.0  # these steps are timed by what they take of a processor: no waiting is in them
    step_s = max(_LEAST_S, few.median_s - micro_batch_s - synchronised_s)
    document: Document = {
        "action": measured(action_s * 1e6, "us", "for each forward and each backward of a stage"),
        "step": measured(step_s * 1e6, "us", f"with the mean of the loss over all ranks; {width(few)}"),
    }
    if piped is not None:
        exchange_s = max(_LEAST_S, (piped.micro_batch_s - micro_batch_s) / 2)
        note = "for each forward and each backward of a stage that hands on to other ranks"
        document["exchange"] = measured(exchange_s * 1e6, "us", note)
    if sharded is not None:
        more_s = sharded.micro_batch_s - micro_batch_s
        once_s = sharded.few.median_s - few.median_s - more_s
        document["sharded_action"] = measured(
            max(_LEAST_S, more_s / 2) * 1e6, "us", "for each forward and each backward under ZeRO"
        )
        document["sharded_step"] = measured(
            max(_LEAST_S, once_s) * 1e6, "us", f"under ZeRO; {width(sharded.few)}"
        )
    parameter_s = result.overheads.tensor_parameter_s
    if parameter_s is not None:
        note = "for each parameter in each forward and each backward on a tensor axis"
        document["tensor_parameter"] = measured(max(_LEAST_S, parameter_s) * 1e6, "us", note)
    return document


def _overhead_elements(result: ProfileResult) -> float:
    """Elements o for which ``1 + o / reduction`` explains how much longer the short sums take."""
    (short, _, few), (long, _, many) = result.compute.short_product, result.compute.long_product
    ratio = short.median_s / long.median_s
    if ratio <= 1 or ratio * few >= many:
        return _LEAST_OVERHEAD_ELEMENTS
    return max(_LEAST_OVERHEAD_ELEMENTS, (ratio - 1) / (1 / few - ratio / many))


def _products(found: Mapping[tuple[str, int], Spread], precision: str, overhead: float) -> Products:
    measured = sorted(
        (edge, 2.0 * edge**3 / spread.median_s) for (p, edge), spread in found.items() if p == precision
    )
    # Reading the table adds the overhead of the reduction again, at the speed of the largest product.
    edge, rate = measured[-1]
    largest = rate * (1 + overhead / edge)
    rates = []
    for edge, rate in measured:
        inverse = 1 / rate - overhead / edge / largest
        # What is left may exceed the largest product's rate; twice as much would be an error of measurement.
        rates.append((edge, min(2 * largest, 1 / inverse) if inverse > 0 else 2 * largest))
    widths = [spread.width for (p, _), spread in found.items() if p == precision]
    return Products(tuple(rates), sorted(widths)[len(widths) // 2])


def _efficiency(products: Products, peak: float) -> Document:
    return {
        "size_unit": "cube_edge",
        "unit": "fraction",
        "source": MEASURED,
        "note": f"10% to 90% of the repetitions lie within {products.spread:.0%}",
        "points": [[edge, rounded(min(1.0, rate / peak))] for edge, rate in products.rates],
    }


def _memory(result: ProfileResult) -> Document:
    machine, compute, settings = result.machine, result.compute, result.settings
    rates = [(size, size / spread.median_s) for size, spread in sorted(compute.streams.items())]
    best = max(rate for _, rate in rates)
    capacity = machine.device_memory_bytes or machine.memory_bytes // settings.num_processes
    widest = max(spread.width for spread in compute.streams.values())
    return {
        "capacity": measured(
            capacity / GiB, "GiB", "" if machine.device_memory_bytes else "share of a process"
        ),
        "framework_reserve": measured(machine.reserved_bytes / GiB, "GiB"),
        "bandwidth": measured(best / 1e9, "GB/s", "the best size below"),
        "efficiency": measured(rates[-1][1] / best, "fraction", "of the largest size"),
        "rates": {
            "size_unit": "B",
            "unit": "GB/s",
            "source": MEASURED,
            "note": f"read and written by addition, relu, layer norm, copy; within {widest:.0%}",
            "points": [[size, rounded(rate / 1e9)] for size, rate in rates],
        },
        **_updates(compute.updates),
    }


def _updates(found: Mapping[int, tuple[Spread, int]]) -> Document:
    """Of the parameter size that is updated quickest, and where several were measured, of each."""
    traffic = optimizer_cost("adamw").traffic_bytes
    rates = {
        elements: num_elements * traffic / spread.median_s / 1e9
        for elements, (spread, num_elements) in sorted(found.items())
    }
    best = max(rates, key=lambda elements: rates[elements])
    document: Document = {"update": measured(rates[best], "GB/s", f"AdamW; {width(found[best][0])}")}
    if len(rates) > 1:
        document["update_rates"] = {
            "size_unit": "B",
            "unit": "GB/s",
            "source": MEASURED,
            "note": "AdamW, by the bytes of a parameter",
            "points": [[MASTER_BYTES * elements, rounded(rate)] for elements, rate in rates.items()],
        }
    return document


def _host(result: ProfileResult) -> Document:
    memory = measured(result.machine.memory_bytes / GiB, "GiB")
    if result.host_copy is not None:
        rate = HOST_COPY_BYTES / result.host_copy.median_s
        return {"pcie": measured(rate / 1e9, "GB/s", width(result.host_copy)), "memory": memory}
    size, spread = max(result.compute.streams.items())
    return {
        "pcie": measured(size / spread.median_s / 1e9, "GB/s", "memory of the same host"),
        "memory": memory,
    }
