import json

from autopar.plan.document import to_document
from autopar.plan.read import parse_plan, plan_of_document
from tests.plan.test_read import PLAN


def test_to_document_is_plain_and_reads_back() -> None:
    plan = parse_plan(PLAN)
    document = json.loads(json.dumps(to_document(plan)))
    assert document["pipeline"]["stages"] == [
        ["wte", "wpe", "blocks.0-11"],
        ["blocks.12-23", "ln_f", "lm_head", "loss"],
    ]
    assert document["batch"] == {"global": 256, "micro": 8}
    assert document["tensor"]["*"] == "replicate"
    assert plan_of_document(document, {}, "json") == plan


def test_to_document_leaves_out_what_is_open() -> None:
    assert to_document(parse_plan("zero: 0\n")) == {"version": 1, "zero": 0}
