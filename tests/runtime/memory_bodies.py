"""What building a model takes, on every rank; see ``world.py``."""

import resource

import torch

from autopar.runtime.storage import local_tensor
from tests.runtime import world
from tests.runtime.bodies import Run


def memory(case):
    """Growth of the peak resident memory over the building of this rank's stage."""
    before = peak_bytes()
    run = Run(case, dtype=torch.float32, timeout_s=case.extra.get("timeout_s", 200.0))
    found = {
        "peak_bytes": peak_bytes() - before,
        "whole_process_bytes": peak_bytes(),
        "model_parameters": sum(x.spec.num_elements for x in run.graph.parameters.values()),
        "shard_bytes": sum(local_tensor(p).numel() * 4 for p in run.model.parameters()),
        "largest_parameter_bytes": max(x.spec.num_elements for x in run.graph.parameters.values()) * 4,
    }
    run.model.close()
    return found


def plain_memory(case):
    """The same of the plain model in one process."""
    source, _ = world.source_and_graph(case)
    before = peak_bytes()
    model = source.build_model()
    return {
        "peak_bytes": peak_bytes() - before,
        "parameters_bytes": sum(p.numel() * 4 for p in model.parameters()),
    }


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
