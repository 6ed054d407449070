"""From a model and a cluster to a plan, and answers to questions about plans.

* ``planner`` is the way through: ``request`` and ``settle`` (what is asked), ``legal_families`` and
  ``pins`` (what may be chosen), the search of package ``solve`` over ``model_choices``, then ``compose``
  and ``plan_lines`` (the words of the plan).
* What the search chooses from: ``block_choices``, from the optimum of each block's table: ``tabulate`` and
  ``operator_table`` write it, ``strategy_costs`` prices it, ``table_solver`` solves it, ``realise`` reads
  it back.
* Where nothing is legal or nothing fits: ``no_candidate``, ``explain_infeasible``, ``remedies``.
* Questions: ``check`` (what a given plan costs), ``examine`` (its errors and oddities), ``explain``,
  ``explain_module``, ``compare``, ``like``, ``sensitivity``, ``picture``; ``replan`` for those that plan
  again.
"""
