"""From blocks and shardings to the program that each rank runs: local tensors, explicit collectives.

* A plan against the model: ``resolve``, ``stages``, ``placements``, and what is refused, ``supported``.
* A block's program: ``block``, by a ``walk`` over its graph; ``collectives``, ``literals``,
  ``local_operators``.
* What the backward pass keeps or leaves for later: ``selective``, ``keeping``, ``kept_shards``,
  ``products``, ``split_backward``, ``weight_gradients``, ``late_gradients``.
"""
