"""What a plan costs: the time of every operator, block, stage and step, and the memory of every rank.

* One operator: ``operators``, ``flops``, ``operator_traffic``. One block under a sharding: ``blocks``, from
  ``local_run`` (one rank's calls), ``effects`` and ``storages`` (which bytes live when); the answer is a
  ``choice``.
* A whole plan is a ``layout``; ``step`` plays its schedule with ``stage_time``, ``synchronisation`` and
  ``offload``; ``layout_memory`` and ``stage_memory`` say what its ranks hold.
* For people: ``prediction``, ``breakdown`` (the terms of a step), ``step_timeline``, ``memory_over_time``.
"""
