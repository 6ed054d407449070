"""Reading and writing files in the safetensors format, one tensor at a time.

The format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the length of a header,
the header as JSON (name -> dtype, shape, begin and end of the data), the data. A tensor that is read is a
mapping of its own part of the file: what is not looked at is not read, and it goes with the tensor.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autopar.errors import UsageError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER_BYTES = 100_000_000  # as the reference implementation has it


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies in a file.

    Attributes:
        begin: first byte, from the start of the file.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor; memory is read as its elements are."""
        if not self.num_bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        skipped = self.begin % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as stream:
            # A private mapping: torch wants memory that may be written to, though nobody does.
            data = mmap.mmap(
                stream.fileno(),
                self.num_bytes + skipped,
                access=mmap.ACCESS_COPY,
                offset=self.begin - skipped,
            )
        flat = torch.frombuffer(data, dtype=torch.uint8, count=self.num_bytes, offset=skipped)
        if skipped % self.dtype.itemsize:
            flat = flat.clone()
        return flat.view(self.dtype).reshape(self.shape)


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Where the tensors of a file lie, by name.

    Raises:
        UsageError: the file is no safetensors file, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER_BYTES):
            raise UsageError(f"'{path}' is no safetensors file, or is cut short: its header does not fit in")
        text = stream.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = {
            name: TensorPlace(
                path=path,
                dtype=_DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
                begin=8 + length + entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"'{path}' is no safetensors file that autopar can read: {error!r}") from error
    for name, place in found.items():
        if place.begin + place.num_bytes > size:
            raise UsageError(f"'{path}' is cut short: the data of '{name}' go beyond its end")
    return found


def write_tensors(
    path: Path,
    forms: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Writes a file, one tensor in memory at a time.

    Args:
        forms: name -> shape and dtype, in the order of ``tensors``.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in forms.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for (name, (shape, dtype)), (given, tensor) in zip(forms.items(), tensors, strict=True):
            assert (name, shape, dtype) == (given, tuple(tensor.shape), tensor.dtype)
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            flat.view(torch.uint8).numpy().tofile(stream)
