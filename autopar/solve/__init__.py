"""The mathematics of choosing a plan: no torch, and the only place that knows OR-Tools.

* ``search`` is where to begin: its ``work_queue`` goes through all outer decisions (``candidates``), best
  bound or what is ``expected`` first, as far as ``work_allowed`` allows; a ``candidate`` is solved by
  ``mesh``, each of its tables by ``table_attempt``: the chain of blocks is cut into stages, and every block's
  way of running chosen.
* The chain: ``chain_problem``, ``chain_build``, ``chain`` with ``segments`` and ``memory_front``,
  ``chain_ilp``; small ones are gone through whole by ``exhaust`` with ``fronts``.
* One block's operators: ``operator_problem``, ``operators`` (a linear programme), ``elimination`` (exact,
  for all prices).
* Lower bounds: ``floors``, ``bounds``, ``stage_floor``, ``table_floor``, ``traffic_floor``,
  ``memory_floor``, ``closer_bounds``, ``cheapest_chain``, ``paths``, ``packing``, ``relaxation`` with
  ``bundle`` and ``parts``.
* Good plans early: ``scout``, ``recipes``, ``first_plans``, ``climb``; what they leave of a rank's memory:
  ``spare_memory``; at the end, ``last_look`` with ``polish``. Beside the answer: ``baselines``,
  ``runners_up``, ``why_not``, ``considered``. Where nothing fits: ``diagnosis``, ``shortfall``.
"""
