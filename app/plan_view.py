"""A plan as HTML: where the memory goes, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Iterable

from app.html import MIB, capital, escape, note, percent, size, tiles
from app.words import explained
from engine.planning.classifier_memory import WEIGHT_BYTES
from engine.planning.hardware import CUDA_CONTEXT, GIB
from engine.planning.planner import Plan, Problem
from engine.planning.report import larger_plans, reasons
from engine.words import counted

PARTS, SMALL_SHARE = 8, 0.005  # colours of the bar; components smaller than that share of it share the last
PHASES = {
    "features": "computing the features once", "encoder": "loading the encoder", "grouping": "grouping the labels",
    "local features": "finding features of clusters",
    "classifier": "making the classifier", "forward": "step: reading the texts", "update": "step: updating the encoder",
    "classifier step": "step: the classifier", "backward": "step: learning from it",
    "embedding gradient": "step: the table of words", "evaluation": "evaluating", "rewiring": "rewiring",
}  # fmt: skip


def whole(problem: Problem, plan: Plan) -> str:
    """Everything about a plan that fits."""
    return memory_bar(plan) + choice(plan) + why(problem, plan) + phases(plan)


def memory_bar(plan: Plan) -> str:
    """The components of the peak against the budget."""
    found = sorted(plan.components.items(), key=lambda item: -item[1])
    large = [item for item in found if item[1] >= SMALL_SHARE * plan.predicted_bytes][: PARTS - 1]
    rest = found[len(large) :]
    parts = [*large, *([(f"{len(rest)} smaller parts", sum(value for _, value in rest))] if rest else [])]
    free = max(0, plan.budget_bytes - plan.predicted_bytes)
    title = f"Predicted memory at its peak ({_phase(plan.peak_phase)}): {size(plan.predicted_bytes)}"
    return _bar(title, [(name, value, f"fill{i}") for i, (name, value) in enumerate(parts)], free, "still free")


def gauge(problem: Problem, predicted: int, here: bool) -> str:
    """The whole memory of the device, and who has it. predicted: what the plan needs, 0 without one."""
    hardware = problem.hardware
    total = _planned_for(problem)
    others = hardware.memory_bytes - hardware.free_bytes if here and hardware.free_bytes is not None else 0
    parts = [("other programs, now", others, "fill7")] if others else []
    parts.append(("kept free for others", int(problem.config.hardware.reserve_gib * GIB), "fill3"))
    if hardware.device == "cuda":
        parts.append(("CUDA itself", CUDA_CONTEXT, "fill1"))
    if predicted:
        parts.append(("this training", predicted, "fill0"))
    left = total - sum(value for _, value, _ in parts)
    title = f"{hardware.name[:1].upper()}{hardware.name[1:]}: {size(total)}"
    title += f", {hardware.cores} processors" if hardware.device == "cpu" and here else ""
    return _bar(title, [part for part in parts if part[1]], max(0, left), "free")


def _clusters(count: int) -> str:
    return f"for each of {count} clusters of labels" if count else "of clusters of labels"


def choice(plan: Plan) -> str:
    """What was chosen, in numbers."""
    dense = plan.labels * plan.width * WEIGHT_BYTES[plan.weight_dtype]
    every = plan.checkpoint_every
    kept = "all of them" if plan.is_dense else f"{percent(plan.head / plan.labels, 0)}, the most frequent"
    beside = "of the text, beside the features"
    if plan.lead:
        beside = f"beside the features; the {plan.lead:,} most frequent labels read all"
    rows = [
        ("Features a label reads (fan-in)", f"{plan.fan_in:,} of {plan.width:,}", f"{plan.sparsity:.0%} sparse"),
        ("Words a label reads", f"{plan.usual_words:,}" if plan.usual_words else "none", beside),
        ("Local features", f"{plan.local:,}" if plan.clusters else "none", _clusters(plan.coarse + plan.clusters)),
        ("Labels sharing features", "none" if plan.is_dense else f"{plan.group_size}", "group size"),
        ("Labels kept dense", f"{plan.head:,}", kept),
        ("Classifier", size(plan.classifier_bytes), f"{plan.weight_dtype}; dense weights: {size(dense)}"),
        ("Texts at once", f"{plan.micro_batch}", "micro-batch"),
        ("Checkpointing", f"1 layer in {every}" if every > 1 else "every layer" if every else "off", _again(every)),
        ("Predicted peak", size(plan.predicted_bytes), f"of {size(plan.budget_bytes)} that may be taken"),
    ]
    if plan.adapter:
        rows.insert(
            3, ("Adapter", f"{plan.adapter:,}", "fits features of the encoder, which stays as it is, to the labels")
        )
    if plan.host_bytes:
        rows.append(("Main memory beside it", size(plan.host_bytes), "of the computer"))
    return tiles(rows)


def why(problem: Problem, plan: Plan) -> str:
    """The reasons, and what more memory would buy."""
    lines = reasons(problem, plan)
    longest = f"the longest text has {counted(problem.tokens, 'token')} here"
    lines.append(f"{longest}; a training counts those of its data, and may plan with less")
    lines += [
        f"fan-in {rung['fan_in']} would fit from {size(rung['memory_bytes'])} of memory on"
        for rung in larger_plans(problem, plan)
    ]
    return f'<h3 class="head">Why</h3>{_list(lines)}'


def phases(plan: Plan) -> str:
    """The peak of each phase, in their order."""
    rows = "".join(
        f'<div class="phase"><span>{escape(_phase(name))}</span><span class="track">'
        f'<i style="width:{100 * min(1, value / max(1, plan.budget_bytes)):.1f}%"></i></span>'
        f'<span class="value">{size(value)}</span></div>'
        for name, value in plan.phases.items()
    )
    return f'<h3 class="head">Peak of each phase</h3><div class="phases">{rows}</div>'


def advice(message: str) -> str:
    """What the planner says when nothing fits."""
    problem, _, changes = message.partition(" What would fit: ")
    if not changes:
        return note(message, problem=True)
    return (
        f"{note('nothing fits: ' + problem, problem=True)}<h3 class='head'>What would fit</h3>"
        f"{_list(changes.split('; or '))}"
    )


def _planned_for(problem: Problem) -> int:
    """Bytes of the device, or less where the configuration says so."""
    memory = problem.config.hardware.memory_gib
    total = problem.hardware.memory_bytes
    return total if memory == "auto" else min(total, int(memory * GIB))


def _phase(name: str) -> str:
    return PHASES.get(name, name)


def _again(every: int) -> str:
    return "activations are computed again" if every else "activations are kept"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{explained(capital(line))}</li>" for line in lines)
    return f'<ul class="reasons">{items}</ul>'


def _bar(title: str, parts: list[tuple[str, int, str]], free: int, free_name: str) -> str:
    """(name, bytes, colour) side by side, with what is left, and a legend that says the same in words."""
    whole = max(1, sum(value for _, value, _ in parts) + free)
    segments = "".join(
        f'<div class="part {colour}" style="width:{100 * value / whole:.2f}%" title="{escape(name)}: {_mib(value)}">'
        "</div>"
        for name, value, colour in parts
    )
    keys = "".join(
        f'<li><i class="{colour}"></i>{explained(name)} <b>{_mib(value)}</b></li>'
        for name, value, colour in [*parts, (free_name, free, "left")]
    )
    described = f"{title}. " + ", ".join(f"{name} {_mib(value)}" for name, value, _ in [*parts, (free_name, free, "")])
    return (
        f'<figure class="memory"><figcaption>{escape(title)}</figcaption>'
        f'<div class="stack" role="img" aria-label="{escape(described)}">{segments}</div>'
        f'<ul class="keys">{keys}</ul></figure>'
    )


def _mib(value: int) -> str:
    return f"{value / MIB:,.0f} MiB"
