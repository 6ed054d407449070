"""The two passes of whatever runs forward and backward: computing, and communication that sticks out."""

from __future__ import annotations


class Passes:
    """Time of both passes of a block or a stage for one micro-batch; heirs say what is in each part."""

    __slots__ = ()

    forward_compute_s: float
    forward_comm_s: float
    backward_compute_s: float
    backward_comm_s: float

    @property
    def forward_s(self) -> float:
        """Forward time with exposed communication."""
        return self.forward_compute_s + self.forward_comm_s

    @property
    def backward_s(self) -> float:
        """Backward time with recompute and exposed communication."""
        return self.backward_compute_s + self.backward_comm_s
