"""Data parallelism of one stage: ZeRO 0 by bucketed all-reduce, 1 to 3 by FSDP2 on blocks and stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard

from autopar.runtime.buckets import all_reduce_in_buckets
from autopar.runtime.mesh import RankMesh
from autopar.runtime.overlap import OverlappedAverage
from autopar.runtime.stage import StageModule
from autopar.runtime.storage import StoredParameter, local_tensor, rewrap


class Replicas:
    """Keeps the data ranks of a stage in step.

    Args:
        stage: whose parameters are replicated or sharded; sharded in place when ``zero`` is at least 1.
        zero: ZeRO level.
        compute_dtype: of the programs; parameters and gradients keep their own.
        turns_round: the backward pass of a micro-batch follows its forward pass at once.
        offload_parameters: whether this rank's pieces, and the gradients of them, live in host memory.
    """

    def __init__(
        self,
        stage: StageModule,
        mesh: RankMesh,
        zero: int,
        compute_dtype: torch.dtype,
        turns_round: bool,
        offload_parameters: bool = False,
    ) -> None:
        self._stage = stage
        self._mesh = mesh
        self._zero = zero
        self._offload_parameters = offload_parameters
        self._average: OverlappedAverage | None = None
        self._early: frozenset[str] = frozenset()
        self._sharded: list[FSDPModule] = []
        self.is_sharded = mesh.divides(zero) and any(True for _ in stage.parameters())
        if self.is_sharded:
            self._shard(compute_dtype, turns_round)

    def before_backward(self, is_last: bool, is_whole: bool = True) -> None:
        """Called before the backward pass of each micro-batch.

        Args:
            is_whole: False where the gradients of weights come later, with ``after_weight_gradients``.
        """
        if not self.is_sharded:
            if self._average is not None and is_last and is_whole:
                self._average.begin()
            return
        assert isinstance(self._stage, FSDPModule)
        if self._mesh.num_replicas > 1:
            # Shard groups add up their gradients once; inside a group every micro-batch is reduced.
            self._stage.set_requires_all_reduce(is_last)
        if not is_whole:
            self._stage.set_reshard_after_backward(self._zero == 3)
            self._stage.set_requires_gradient_sync(False)
            return
        if self._zero == 3:
            return
        self._stage.set_reshard_after_backward(is_last)
        if self._zero == 1:
            # Gradients stay whole until the last micro-batch, which reduces their sum.
            self._stage.set_requires_gradient_sync(is_last)

    def after_weight_gradients(self, is_last: bool) -> None:
        """Called when the gradients that a split backward pass had put off are there."""
        if not self.is_sharded:
            return
        assert isinstance(self._stage, FSDPModule)
        if self._mesh.num_replicas > 1:
            self._stage.set_requires_all_reduce(is_last)
        # First only added up, in the dtype of those that the first half left: FSDP reduces one dtype at a
        # time.
        self._empty_pass(reduces=False)
        if is_last or self._zero > 1:
            self._stage.set_reshard_after_backward(is_last or self._zero == 3)
            self._empty_pass(reduces=True)

    def _empty_pass(self, reduces: bool) -> None:
        # FSDP takes gradients over in the hooks of a backward pass: this one computes nothing.
        assert isinstance(self._stage, FSDPModule)
        self._stage.set_requires_gradient_sync(reduces)
        nothing = torch.zeros((), device=self._mesh.device, requires_grad=True)
        torch.autograd.backward(self._stage.touch(nothing))

    def after_evaluation(self) -> None:
        """Called after forward passes that no backward pass follows: frees what FSDP gathered for it."""
        for module in self._sharded:
            # What stays gathered would be read again after the optimiser has changed the shards.
            module.reshard()

    def average_gradients(self) -> None:
        """Averages the gradients of replicated parameters over the data ranks; a collective of them."""
        if self.is_sharded or self._mesh.data_group is None:
            return
        early: Collection[str] = ()
        if self._average is not None:
            self._average.finish()
            early = self._early
        late = [p.grad for name, p in self._stage.named_originals() if name not in early]
        gradients = [local_tensor(gradient) for gradient in late if gradient is not None]
        all_reduce_in_buckets(gradients, self._mesh.data_group, 1 / self._mesh.data)

    def overlap(self, copies: ComputeCopies, shared: Collection[str]) -> None:
        """Lets gradients be averaged while the last backward pass goes on.

        Args:
            copies: whose gradients come in the place of the parameters' own.
            shared: parameters that another stage of this rank uses, too: they have to wait.
        """
        if self.is_sharded or self._mesh.data_group is None:
            return
        own = {name: p for name, p in self._stage.named_originals() if name not in shared and p.requires_grad}
        self._early = frozenset(own)
        average = self._average = OverlappedAverage(list(own.values()), self._mesh.data_group)
        for name, parameter in own.items():
            if name in copies.tensors:
                copies.call_after(name, partial(average.note, parameter))
            else:
                parameter.register_post_accumulate_grad_hook(average.note)  # type: ignore[no-untyped-call]

    def _shard(self, compute_dtype: torch.dtype, turns_round: bool) -> None:
        dtypes = {p.dtype for p in self._stage.parameters() if p.is_floating_point()}
        policy = MixedPrecisionPolicy()
        if dtypes and dtypes != {compute_dtype}:
            policy = MixedPrecisionPolicy(
                param_dtype=compute_dtype,
                reduce_dtype=max(dtypes, key=lambda x: x.itemsize),
                cast_forward_inputs=False,
            )
        stored = {id(p): self._stage.stored(name) for name, p in self._stage.named_originals()}

        def placement(parameter: nn.Parameter) -> Shard | None:
            return _data_shard(stored[id(parameter)], self._mesh.shard_group)

        is_pinned = self._mesh.device.type != "cpu"
        offload = CPUOffloadPolicy(pin_memory=is_pinned) if self._offload_parameters else OffloadPolicy()
        self._stage.return_no_views()
        groups = self._stage.group()
        # What the forward pass has used last is what the backward pass asks for first.
        kept = {id(module) for module in (self._stage, *groups[-1:]) if turns_round}
        for module in (*groups, self._stage):
            fully_shard(
                module,
                mesh=self._mesh.data_mesh,
                reshard_after_forward=self._zero == 3 and id(module) not in kept,
                mp_policy=policy,
                offload_policy=offload,
                shard_placement_fn=placement,
                # FSDP would give them gradients of zeros, which optimisers take for gradients.
                ignored_params=set(self._stage.idle.parameters()),
            )
        for group in groups:
            if turns_round and group.only_looks_up:
                assert isinstance(group, FSDPModule)
                group.set_unshard_in_backward(False)
        register_fsdp_forward_method(self._stage, "touch")
        self._sharded = [module for module in self._stage.modules() if isinstance(module, FSDPModule)]


def _data_shard(stored: StoredParameter, degree: int) -> Shard | None:
    # The first dim is cheapest to gather; another one only where the first would leave ranks without a piece.
    shape = stored.local_shape
    even = [dim for dim, size in enumerate(shape) if size % degree == 0]
    return Shard(even[0]) if even else None


class ComputeCopies:
    """Copies of the parameters in the compute dtype, for stages whose parameters are not sharded by FSDP.

    Every micro-batch computes with the same copy; its gradient is added to the parameter's own, in the
    parameter's dtype, as soon as it is complete. The copy of a DTensor in the compute dtype is its own piece
    as a plain tensor: taking that anew in every pass, and handing its gradient back, costs the host more than
    a small product does.
    """

    def __init__(self, compute_dtype: torch.dtype) -> None:
        self._dtype = compute_dtype
        self.tensors: dict[str, Tensor] = {}
        self._actions: dict[str, Callable[[], None]] = {}

    def make(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Makes a copy of each parameter whose dtype is not the compute dtype, or that is a DTensor."""
        for name, parameter in parameters.items():
            is_plain = parameter.dtype == self._dtype and not isinstance(parameter, DTensor)
            if not parameter.is_floating_point() or is_plain:
                continue
            copy = local_tensor(parameter.detach()).to(self._dtype)
            if parameter.requires_grad:
                copy.requires_grad_()
                copy.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._accumulate, name, parameter)
                )
            self.tensors[name] = copy

    def refresh(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes over the parameters' values, after the optimiser changed them."""
        with torch.no_grad():
            for name, copy in self.tensors.items():
                now = local_tensor(parameters[name].detach())
                if now.data_ptr() != copy.data_ptr():
                    copy.copy_(now)

    def call_after(self, name: str, action: Callable[[], None]) -> None:
        """Calls ``action`` whenever a gradient was added to the parameter ``name``."""
        self._actions[name] = action

    def _accumulate(self, name: str, parameter: nn.Parameter, copy: Tensor) -> None:
        gradient, copy.grad = copy.grad, None
        if gradient is None:
            return
        if parameter.grad is None:
            parameter.grad = rewrap(parameter, gradient.to(parameter.dtype))
        else:
            local_tensor(parameter.grad).add_(gradient)
        if name in self._actions:
            self._actions[name]()
