"""What ``explain`` prints: tables for people, JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from autopar.cli.outcome import document_text
from autopar.cli.results import mesh_document
from autopar.cli.terminal import rendered, width_of
from autopar.cost.breakdown import TERMS, Breakdown, StepTerms
from autopar.plan.document import to_document
from autopar.report.explained import lines_table, terms_table, what_loses
from autopar.report.module import operators_table, parameters_table
from autopar.report.predicted import fit_word, prediction_document
from autopar.report.text import headline, memory_table, mesh_text, plain_table, stage_table
from autopar.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from autopar.planner.explain import Explanation
    from autopar.planner.explain_module import ModuleUse


def to_summary(explanation: Explanation) -> str:
    """Tables for people."""
    costing = explanation.costing
    plan, prediction = costing.resolved.plan, costing.prediction
    parts: list[RenderableType] = [
        *headline(plan, prediction, fit_word(prediction), None, None),
        Text(),
        terms_table(costing.breakdown, width_of()),
        Text(),
        stage_table(plan, prediction),
        Text(),
        Text("memory of one device"),
        memory_table(prediction.stages),
        Text(),
    ]
    if explanation.free is not None:
        parts += [*_against_the_free_optimum(explanation), Text()]
    if explanation.remark:
        parts.append(Text(explanation.remark))
    for freed in explanation.freed:
        said = ", ".join(f"{d.key} {d.first} -> {d.second}" for d in freed.would_say) or "nothing else"
        gain = "gains nothing" if freed.gain_s < 1e-9 else f"gains {format_seconds(freed.gain_s)}"
        parts.append(Text(f"leaving {freed.key} to the planner {gain}; it would say: {said}"))
    if costing.resolved.plan.mesh.tensor != 1:
        fallen = ", ".join(f"{f.operator} ({f.num_calls} x)" for f in explanation.fallbacks)
        parts.append(Text(f"replicated on the tensor axis for lack of a rule: {fallen or 'nothing'}"))
    return rendered(parts)


def _against_the_free_optimum(explanation: Explanation) -> list[RenderableType]:
    free, mine = explanation.free, explanation.costing
    assert free is not None
    lost_s = mine.prediction.step_time_s - free.prediction.step_time_s
    table = plain_table("pipeline x data x tensor", ">micro", "schedule", ">step time", "beside this plan")
    here, terms = free.plan, mine.breakdown.terms
    table.add_row(
        mesh_text(here.mesh),
        str(here.micro_batch),
        str(here.schedule),
        format_seconds(free.prediction.step_time_s),
        f"the free optimum ({free.status})",
    )
    for other in free.alternatives:
        table.add_row(
            mesh_text(other.mesh),
            str(other.micro_batch),
            str(other.schedule),
            "" if other.step_time_s is None else format_seconds(other.step_time_s),
            what_loses(other, terms) or other.why_not,
        )
    parts: list[RenderableType] = [Text("why this mesh"), table, Text()]
    said = f"takes {format_seconds(abs(lost_s))} {'more' if lost_s > 0 else 'less'} than"
    said = "is as quick as" if abs(lost_s) < 1e-9 else said
    if not explanation.lines:
        parts.append(Text(f"the plan {said} the free optimum; no line of it was made by hand"))
        return parts
    how = "made by hand" if mine.resolved.plan.chosen else "that differ"
    parts.append(Text(f"the plan {said} the free optimum; lines {how}, each fixed alone"))
    parts.append(lines_table(explanation.lines))
    return parts


def to_json(explanation: Explanation) -> str:
    """The document of ``explain --json``, schema 1."""
    costing, free = explanation.costing, explanation.free
    document: dict[str, Any] = {
        "schema": 1,
        "status": fit_word(costing.prediction),
        "plan": to_document(costing.resolved.plan),
        "predicted": prediction_document(costing.prediction),
        "step": breakdown_document(costing.breakdown),
        "replicated_for_lack_of_a_rule": [asdict(one) for one in explanation.fallbacks],
    }
    if free is not None:
        document["free_optimum"] = {
            "status": free.status,
            "step_time_s": free.prediction.step_time_s,
            "plan": to_document(free.plan),
        }
        document["runners_up"] = [
            {
                "mesh": mesh_document(other.mesh),
                "micro": other.micro_batch,
                "step_time_s": other.step_time_s,
                "terms": None if other.terms is None else _terms(other.terms),
                "why_not": other.why_not,
            }
            for other in free.alternatives
        ]
        document["lines"] = [asdict(line) for line in explanation.lines]
        document["freed"] = [
            {
                "key": freed.key,
                "step_time_s": freed.step_time_s,
                "gain_s": freed.gain_s,
                "would_say": [{"key": d.key, "here": d.first, "free": d.second} for d in freed.would_say],
            }
            for freed in explanation.freed
        ]
    return document_text(document)


def breakdown_document(breakdown: Breakdown) -> dict[str, Any]:
    """Where a step goes, as plain data; the terms of a rank add up to the step."""
    return {
        "step_time_s": breakdown.step_time_s,
        "slowest_rank": breakdown.slowest,
        "ranks": [_terms(terms) for terms in breakdown.ranks],
        "hidden": [asdict(hidden) for hidden in breakdown.hidden],
    }


def _terms(terms: StepTerms) -> dict[str, float]:
    return {f"{term}_s": terms.seconds(term) for term in TERMS}


def module_summary(use: ModuleUse) -> str:
    """Tables about one module."""
    where = ", ".join(f"{block} (stage {stage})" for block, stage in use.blocks[:4])
    more = f" and {len(use.blocks) - 4} more" if len(use.blocks) > 4 else ""
    parts: list[RenderableType] = [
        Text(f"{use.name}: in {where}{more}; one rank, one micro-batch", style="bold")
    ]
    if use.operators:
        parts.append(_flow_and_times(use))
    if use.whole:
        forward_s, backward_s = sum(c.forward_s for c in use.whole), sum(c.backward_s for c in use.whole)
        parts.append(
            Text(
                f"with dispatch and recompute: {format_seconds(forward_s)} forward, "
                f"{format_seconds(backward_s)} backward; keeps "
                f"{format_bytes(sum(c.saved_bytes for c in use.whole))} for the backward pass, needs at most "
                f"{format_bytes(max(c.transient_bytes for c in use.whole))} more while it runs"
            )
        )
    if use.parameters:
        parts += [Text(), parameters_table(use.parameters)]
    if use.operators:
        parts += [Text(), operators_table(use.operators)]
    return rendered(parts)


def _flow_and_times(use: ModuleUse) -> Text:
    forward_s, backward_s = sum(o.forward_s for o in use.operators), sum(o.backward_s for o in use.operators)
    sent = [one for operator in use.operators for one in operator.collectives]
    return Text(
        f"in: {use.input_word}, out: {use.output_word}, recompute: "
        f"{'/'.join(dict.fromkeys(use.recompute)) or 'none'}; "
        f"operators {format_seconds(forward_s)} forward, {format_seconds(backward_s)} backward; "
        f"{len(sent)} collectives, {format_bytes(sum(c.num_bytes for c in sent))}, "
        f"{format_seconds(sum(c.seconds for c in sent))}"
    )


def module_to_json(use: ModuleUse) -> str:
    """The document of ``explain --node --json``, schema 1."""
    document = asdict(use)
    document["whole"] = [
        {
            "forward_s": choice.forward_s,
            "backward_s": choice.backward_s,
            "saved_bytes": choice.saved_bytes,
            "transient_bytes": choice.transient_bytes,
        }
        for choice in use.whole
    ]
    return document_text({"schema": 1, **document})
