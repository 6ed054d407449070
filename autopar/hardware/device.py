"""One accelerator (or CPU process) as numbers: what a cost-model file says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.hardware.blocks import MeasuredBlock
from autopar.hardware.link import HostLink, IntraNodeLink, NetworkLink
from autopar.hardware.tables import SizeTable

# In order of preference: the first that a device computes in is its default.
PRECISIONS = ("bf16", "fp16", "fp32")
# Of a parameter as it is updated: fp32.
_ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """What planning needs to know of a device; every number comes from its cost-model file, with unit and
    source.

    Attributes:
        name: as ``--device`` takes it, e.g. ``a100-sxm-80gb``.
        description: for people.
        kind: ``gpu`` or ``cpu``.
        detected_as: names under which the driver may report it (``torch.cuda.get_device_name``).
        peak_flops_per_s: dense peak by precision (``bf16``, ``fp16``, ``fp32``); unsupported ones are absent.
        matmul_efficiency: by precision, the fraction of the peak that a matrix product reaches, by the edge
            of the cube of equal volume, (batch x M x N x K) ** (1/3).
        matmul_overhead_elements: time that a tile of a product spends beside its reduction (prologue,
            epilogue), as so many elements more to reduce over; it slows products with a short reduction.
        attention_efficiency: fraction of the peak that fused attention reaches, forward.
        memory_bytes: what the driver reports as total.
        framework_reserved_bytes: context, library workspaces and allocator slack, before any tensor.
        memory_bytes_per_s: peak memory bandwidth.
        memory_efficiency: fraction of it that a memory-bound operator reaches.
        launch_s: gap that one kernel adds on the device.
        dispatch_s: time of the host to dispatch one operator of eager PyTorch; where a block's kernels are
            shorter than this on average, the device waits for the host.
        default_devices_per_node: devices of the usual node.
        path: the cost-model file, for messages.
        time_share: devices that take turns on one processor (more processes than cores); all rates are those
            of a device while all of them are busy, so that one that computes while others wait is up to so
            many times faster.
        overlap: fraction of the communication on the data axis that can run beside compute; 0 where sending
            takes the same processor (gloo).
        action_s: time of the host for each forward and each backward of a stage, beside its operators.
        step_s: likewise, once a step.
        exchange_s: likewise, for each forward and each backward of a stage that hands on to other ranks.
        sharded_action_s: likewise, for each forward and each backward under ZeRO 1 to 3.
        sharded_step_s: likewise, once a step under ZeRO 1 to 3.
        tensor_parameter_s: likewise, for each parameter in each forward and each backward of a block on a
            tensor axis, where parameters are DTensors.
        memory_rates: bytes/s that a memory-bound operator reaches by the bytes that it moves; None: the same
            at every size.
        update_bytes_per_s: what the optimiser's update reaches; None: as any memory-bound operator.
        update_rates: likewise, by the bytes (fp32) of the parameter that is updated; None: the same for all.
            Operators of the update that follow each other find a small parameter's state in the caches, and
            of a tiny one they cost what they cost at least.
        blocks: measured times of block classes (``autopar profile --model``), by class key.
    """

    name: str
    description: str
    kind: str
    detected_as: tuple[str, ...]
    peak_flops_per_s: Mapping[str, float]
    matmul_efficiency: Mapping[str, SizeTable]
    matmul_overhead_elements: float
    attention_efficiency: float
    memory_bytes: int
    framework_reserved_bytes: int
    memory_bytes_per_s: float
    memory_efficiency: float
    launch_s: float
    dispatch_s: float
    intra_node: IntraNodeLink
    network: NetworkLink
    host: HostLink
    default_devices_per_node: int
    path: str = ""
    time_share: float = 1.0
    overlap: float = 1.0
    action_s: float = 0.0
    step_s: float = 0.0
    exchange_s: float = 0.0
    sharded_action_s: float = 0.0
    sharded_step_s: float = 0.0
    tensor_parameter_s: float = 0.0
    memory_rates: SizeTable | None = None
    update_bytes_per_s: float | None = None
    update_rates: SizeTable | None = None
    blocks: Mapping[str, MeasuredBlock] = field(default_factory=dict)

    @property
    def default_precision(self) -> str:
        """``bf16`` where the device has it, else ``fp16``, else ``fp32``."""
        return next(precision for precision in PRECISIONS if precision in self.peak_flops_per_s)

    def supports(self, precision: str) -> bool:
        """Whether the device computes matrix products in this precision."""
        return precision in self.peak_flops_per_s

    def peak(self, precision: str) -> float:
        """Dense peak in FLOP/s; that of fp32 where the precision has no units of its own (it is emulated)."""
        return self.peak_flops_per_s.get(precision, self.peak_flops_per_s["fp32"])

    def matmul_flops_per_s(self, precision: str, cube_edge: float, reduction: float) -> float:
        """What a matrix product reaches, FLOP/s.

        Args:
            precision: that of fp32 is taken where the device has no units for it.
            cube_edge: (batch x M x N x K) ** (1/3).
            reduction: K, the length that is summed over.
        """
        if precision not in self.peak_flops_per_s:
            precision = "fp32"
        table = self.matmul_efficiency[precision]
        # The overhead runs at the speed of large products; the table has the fixed time of small ones
        # already.
        inverse = 1 / table.at(cube_edge) + self.matmul_overhead_elements / reduction / table.points[-1][1]
        return self.peak_flops_per_s[precision] / inverse

    @property
    def effective_memory_bytes_per_s(self) -> float:
        """Memory bandwidth that a memory-bound operator reaches."""
        return self.memory_bytes_per_s * self.memory_efficiency

    def update_weight(self, num_elements: int) -> float:
        """How many times as long as at ``update_bytes_per_s`` the update of a parameter of so many elements
        takes.
        """
        if self.update_rates is None or self.update_bytes_per_s is None or num_elements < 1:
            return 1.0
        num_bytes = float(_ELEMENT_BYTES * num_elements)
        return self.update_rates.seconds(num_bytes) * self.update_bytes_per_s / num_bytes

    def memory_s(self, num_bytes: float) -> float:
        """Seconds of a memory-bound operator that reads and writes so many bytes."""
        if self.memory_rates is None or num_bytes <= 0:
            return num_bytes / self.effective_memory_bytes_per_s
        return num_bytes / self.memory_rates.at(num_bytes)
