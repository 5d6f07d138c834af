"""A plan in words: one line in a run's log, a table for people, and what would fit with more memory."""

from __future__ import annotations

import math
from dataclasses import replace

from engine.planning.hardware import CUDA_CONTEXT, GIB
from engine.planning.planner import HEADROOM, LADDER, Plan, Problem, fan_ins, fitting, least
from engine.words import counted

MIB = 2**20
BAR = 30  # characters of the longest bar
RUNGS_SHOWN = 3


def plan_line(plan: Plan) -> str:
    """The choice and its predicted peak."""
    return (
        f"{classifier_words(plan)}, {plan.classifier_bytes / MIB:,.1f} MiB; {training_words(plan)}; "
        f"predicted peak {plan.predicted_bytes / MIB:,.0f} of {plan.budget_bytes / MIB:,.0f} MiB"
    )


def classifier_words(plan: Plan) -> str:
    words = f" and {plan.usual_words:,} words" if plan.usual_words else ""
    if plan.is_dense:
        return f"dense, {plan.width} features{words} a label, {plan.weight_dtype}"
    own = f", {plan.coarse + plan.clusters} clusters with {plan.local} features of their own" if plan.clusters else ""
    features = f"fan-in {plan.fan_in} of {plan.width} ({plan.sparsity:.0%} sparse)"
    if plan.fan_in == plan.width:
        features = f"all {plan.width} features"
    head = f"{plan.head:,} head labels dense" + (f" ({plan.lead:,} with all words)" if plan.lead else "")
    return f"{features}{words}{own}, groups of {plan.group_size}, {head}, {plan.weight_dtype}"


def training_words(plan: Plan) -> str:
    adapter = f"adapter of {plan.adapter:,}, " if plan.adapter else ""
    every = f"activation checkpoints every {plan.checkpoint_every}" if plan.checkpoint_every else "no checkpointing"
    when = "optimizer in backward" if plan.optimizer_in_backward else "optimizer after backward"
    graphs = ", CUDA graphs" if plan.cuda_graphs else ""
    return f"{adapter}micro-batch {plan.micro_batch}, {every}, {when}{graphs}"


def memory_line(predicted: int | None, measured: int) -> str:
    """Predicted and measured peak side by side; predicted None: the plan does not say."""
    if not predicted:
        return f"peak memory {measured / MIB:,.0f} MiB"
    off = 100 * (predicted / measured - 1) if measured else 0.0
    return f"peak memory {measured / MIB:,.0f} MiB, predicted {predicted / MIB:,.0f} MiB ({off:+.1f} %)"


def reasons(problem: Problem, plan: Plan) -> list[str]:
    """Why the plan is what it is, a sentence for each choice that the configuration left open."""
    c, found = problem.config.classifier, []
    choices = fan_ins(problem)
    larger = [fan_in for fan_in in choices if fan_in > plan.fan_in]
    if c.fan_in != "auto":
        found.append(f"fan-in {c.fan_in}: as configured")
    elif larger:
        needs = least(problem, larger[0])
        found.append(f"fan-in {plan.fan_in}: the largest that fits; {larger[0]} needs {needs / GIB:.2f} GiB")
    elif plan.is_dense:
        found.append(f"all {plan.width} features: with so few labels the last layer takes no longer than the encoder")
    elif plan.fan_in == plan.width:
        found.append(
            f"all {plan.width} features: there are few labels, and with a frozen encoder they need what they get"
        )
    else:
        found.append(f"fan-in {plan.fan_in}: half of the {plan.width} features, more is not chosen by itself")
    if plan.adapter and problem.config.adapter.width == "auto":
        found.append(
            f"an adapter of {plan.adapter:,}: the encoder stays as it is, this layer fits its features to the labels"
        )
    if c.head_fraction == "auto" and plan.head < round(0.05 * plan.labels):
        found.append(f"{plan.head:,} head labels: the usual 5 % dense labels would cost fan-in or do not fit")
    for field, value, words in (
        ("checkpoint_every", 0, "activations are computed again in backward"),
        ("optimizer_in_backward", False, "matrices are updated during backward, their gradients clipped one by one"),
        (
            "micro_batch",
            problem.config.training.batch_size,
            "the encoder sees a batch in parts, each of them twice",
        ),
    ):
        chosen = getattr(plan, field)
        if chosen != value and (problem.trained or field != "micro_batch"):
            found.append(f"{words}: {field} = {chosen}" + _needed(problem, plan, field))
    if plan.cuda_graphs:
        config = type(problem.config).from_flat(problem.config.flat() | {"encoder.cuda_graphs": "off"})
        _, without = fitting(replace(problem, config=config), plan.fan_in, plan.budget_bytes)
        found.append(
            "CUDA graphs start the encoder's passes as a whole, faster where texts are short; "
            f"encoder.cuda_graphs=off needs {without.peak * HEADROOM / GIB:.2f} GiB"
        )
    return found


def _needed(problem: Problem, plan: Plan, field: str) -> str:
    """What the plan would take without the choice in `field`, if the planner made it."""
    keys = {
        "checkpoint_every": ("encoder.checkpointing", "off"),
        "optimizer_in_backward": ("encoder.optimizer_in_backward", "false"),
        "micro_batch": ("training.micro_batch", problem.config.training.batch_size),
    }
    key, without = keys[field]
    if problem.config[key] != "auto":
        return ", as configured"
    pinned = {
        "classifier.fan_in": "dense" if plan.is_dense else plan.fan_in,
        "classifier.head_fraction": plan.head / plan.labels,
        "classifier.group_size": plan.group_size,
        key: without,
    }
    config = type(problem.config).from_flat(problem.config.flat() | pinned)
    needs = least(replace(problem, config=config), plan.fan_in)
    return f"; without, {needs / GIB:.2f} GiB" if needs > plan.budget_bytes else "; faster than the other ways that fit"


def larger_plans(problem: Problem, plan: Plan) -> list[dict]:
    """What the next rungs of the ladder need: [{fan_in, memory_bytes}], the reserve included, up to tenths of a GiB."""
    if problem.config.classifier.fan_in != "auto":
        return []
    above = [f for f in LADDER if plan.fan_in < f <= problem.width // 2]
    beside = problem.config.hardware.reserve_gib * GIB + (CUDA_CONTEXT if plan.device == "cuda" else 0)
    tenths = {f: math.ceil(10 * (least(problem, f) + beside) / GIB) for f in above[:RUNGS_SHOWN]}
    return [{"fan_in": f, "memory_bytes": math.ceil(GIB * tenth / 10)} for f, tenth in tenths.items()]


def format_plan(problem: Problem, plan: Plan) -> str:
    """The table of `engine plan`."""
    encoder = problem.encoder
    how = "trained" if problem.trained else "frozen"
    lines = [
        f"{counted(plan.labels, 'label')}; encoder {how}, {encoder.parameters / 1e6:.0f} M parameters, "
        f"{plan.width} features; {counted(problem.tokens, 'token')}, batch {problem.config.training.batch_size}",
        f"on {problem.hardware.name}, {plan.budget_bytes / GIB:.2f} GiB may be taken",
        "",
        f"classifier  {classifier_words(plan)}",
        f"training    {training_words(plan)}",
        "",
        f"{f'peak, in phase {plan.peak_phase!r}':<32}{'MiB':>10}",
    ]
    most = max(plan.components.values())
    for name, size in plan.components.items():
        lines.append(f"  {name:<30}{size / MIB:>10,.1f}  {'█' * round(BAR * size / most)}".rstrip())
    lines.append(f"  {'predicted':<30}{plan.predicted_bytes / MIB:>10,.1f}")
    if plan.host_bytes:
        lines.append(f"  {'host memory beside it':<30}{plan.host_bytes / MIB:>10,.1f}")
    lines += ["", "other phases: " + ", ".join(f"{k} {v / MIB:,.0f}" for k, v in plan.phases.items()), ""]
    lines += [f"- {reason}" for reason in reasons(problem, plan)]
    more = larger_plans(problem, plan)
    if more:
        rungs = ", ".join(f"fan-in {rung['fan_in']} from {rung['memory_bytes'] / GIB:.1f} GiB on" for rung in more)
        lines.append(f"- with more memory: {rungs}")
    if (
        plan.device == "cuda"
        and plan.weight_dtype != "fp8"
        and (fan_in := _fan_in_with_fp8(problem, plan)) > plan.fan_in
    ):
        advice = "--set classifier.weight_dtype=fp8, on cards of the RTX 30 series or newer"
        lines.append(f"- in the same memory with 8-bit weights: fan-in {fan_in} ({advice})")
    return "\n".join(lines)


def _fan_in_with_fp8(problem: Problem, plan: Plan) -> int:
    config = type(problem.config).from_flat(problem.config.flat() | {"classifier.weight_dtype": "fp8"})
    changed = replace(problem, config=config)
    return next(f for f in reversed(fan_ins(changed)) if fitting(changed, f, plan.budget_bytes))
