"""From a model file or a Hugging Face config to a chain of blocks, each a self-contained graph.

Start at ``capture``; what comes out is a ``model_graph``.

* The user's model: ``target``, ``hugging_face``, ``fake_model``, ``conversions``, ``wrapper``,
  ``module_output``; what it may not hold: ``model_checks``, and do:
  ``forward_checks``.
* One export of it: ``export``, ``capture_errors`` and ``user_code`` (whose line was it), ``clean``,
  ``graph_checks``, ``causal_masks``; for which batch sizes it holds: ``size_conditions``.
* Layers that are equal are traced once: ``sharing`` proves it, with ``structure``, ``observation``,
  ``descriptions``, ``traced_call``, ``repeat_operators`` and ``expand``; their parameters are ``withheld``.
* Where it is cut: ``pieces``, ``segments``, ``dataflow``, ``recipe``, ``blocks``, ``specialize``; what
  blocks have in common: ``class_key``, ``fingerprint``; for another process: ``portable``.
"""
