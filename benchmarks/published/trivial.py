"""The model that any other must beat: hardware FLOPs at half of the peak, and the pipeline's bubble."""

from __future__ import annotations

from published.runs import Run


def trivial_step_s(run: Run, peak_flops_per_s: float) -> float:
    """Hardware FLOPs / (devices x peak x 0.5) x bubble.

    FLOPs of products and of causal attention counted whole (Narayanan et al. 2021, arXiv 2104.04473, eq. 3,
    for any MLP and number of heads): forward once, backward twice, forward again where all is recomputed.
    """
    size = run.hidden // run.heads
    layer = run.hidden * (2 * run.hidden + 2 * run.kv_heads * size + (3 if run.gated else 2) * run.ffn)
    per_token = 2 * run.layers * layer + 4 * run.layers * run.seq * run.hidden
    passes = 4 if run.recompute.startswith("full") else 3
    flops = run.global_batch * run.seq * (passes * per_token + 3 * 2 * run.hidden * run.vocab)
    num_micro_batches = run.global_batch // (run.micro_batch * run.data)
    bubble = 1 + (run.pipeline - 1) / (num_micro_batches * run.virtual)
    return flops / (run.num_devices * peak_flops_per_s * 0.5) * bubble
