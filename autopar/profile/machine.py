"""What the machine says of itself: processors, memory, driver and versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_QUOTA = "/sys/fs/cgroup/cpu.max"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as a cost model needs it.

    Attributes:
        processor: name of the GPU, or of the CPU.
        num_cores: that this process may use.
        memory_bytes: of the host that may be used.
        device_memory_bytes: of one GPU; None without.
        reserved_bytes: that a process takes before any tensor of a model: of the GPU, else resident.
        versions: of Python and torch, for people.
        date: ISO, of today.
    """

    processor: str
    num_cores: int
    memory_bytes: int
    device_memory_bytes: int | None
    reserved_bytes: int
    versions: str
    date: str


def describe_machine(device: torch.device) -> Machine:
    """This machine, with the GPU if ``device`` is one."""
    gpu_bytes, name, reserved = None, _cpu_name(), _resident_bytes()
    if device.type == "cuda":
        gpu_bytes = torch.cuda.get_device_properties(device).total_memory
        name = torch.cuda.get_device_name(device)
        free, total = torch.cuda.mem_get_info(device)
        reserved = total - free - torch.cuda.memory_reserved(device)
    return Machine(
        processor=name,
        num_cores=num_cores(),
        memory_bytes=host_memory_bytes(),
        device_memory_bytes=gpu_bytes,
        reserved_bytes=max(reserved, 2**20),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
        date=date.today().isoformat(),
    )


def num_cores() -> int:
    """Cores that this process may use: its affinity, or the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP_QUOTA).split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def host_memory_bytes() -> int:
    """Memory that processes here may use: all of the machine's, or the limit of the control group."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [int(text) for text in map(_read, _CGROUP_LIMITS) if text.isdigit()]
    return min(limits)


def _resident_bytes() -> int:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 2**28


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
