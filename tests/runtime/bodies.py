"""What the ranks of the tests do; see ``world.py``."""

import world

from autopar.verify.rank import VerifyOptions, verify_rank
from autopar.verify.without_dropout import without_dropout
from plans import make_plan


def verify(case):
    source, graph = world.source_and_graph(case)
    graph, _ = without_dropout(graph)
    options = dict(case.options)
    steps = options.pop("num_steps", 2)
    plan = make_plan(graph, **options)
    report = verify_rank(plan, source, graph, VerifyOptions(num_steps=steps, timeout_s=40))
    return None if report is None else report.to_json()
