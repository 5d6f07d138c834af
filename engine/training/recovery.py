"""What gives way when a training runs out of memory: CUDA graphs, the micro-batch, stored activations, the fan-in.

All but the last change no gradient. The fan-in does, and is touched only with the user's leave.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.config import RunConfig
from engine.planning.encoders import EncoderShape
from engine.planning.planner import LADDER, Plan
from engine.words import counted

MOST_NOTCHES = 3
# What CUDA, Triton and ROCm say; cuBLAS and cuDNN; torch on a processor. Only torch's allocator raises its own error.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")

Lowered = tuple[Plan, str]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, be it beside torch's allocator: where another program has it all, even the code of a
    kernel finds no place."""
    return any(words in str(error) for words in OUT_OF_MEMORY)


def lowered(plan: Plan, config: RunConfig, encoder: EncoderShape, earlier: int = 0) -> Lowered | None:
    """(the plan one notch lower, what changed in words), or None if nothing is left that may give way.

    earlier: notches of the plan that the run began or was resumed with; they do not count towards MOST_NOTCHES.
    """
    if plan.cuda_graphs:  # these are no notch: there is something left to lower behind them
        return replace(plan, cuda_graphs=False), "an encoder that is launched kernel by kernel, without CUDA graphs"
    notches = plan.notches - earlier
    if notches >= MOST_NOTCHES:
        return None
    ways = [_smaller_batch, _more_checkpoints, _smaller_fan_in]
    first = ways[min(notches, 2)]
    for way in sorted(ways, key=lambda way: way is not first):  # the others keep their order
        if found := way(plan, config, encoder):
            return replace(found[0], notches=plan.notches + 1), found[1]
    return None


def advice(plan: Plan, problem: str, run: Path) -> str:
    """One line for the user when nothing gave way any more. run: the run's folder."""
    can_narrow = not plan.is_dense and plan.fan_in > LADDER[0]
    fan_in = "; or go on with --allow-lower-fan-in behind it" if can_narrow else ""
    return (
        f"out of memory after {counted(plan.notches, 'change')} of the plan ({problem}). Close other programs that use "
        f"the GPU and go on with `engine train --resume {run}`{fan_in}; or start a run with a smaller "
        "hardware.memory_gib, for which a plan is made"
    )


def _smaller_batch(plan: Plan, config: RunConfig, encoder: EncoderShape) -> Lowered | None:
    micro = min(plan.micro_batch, config.training.batch_size)
    if config.encoder.trainable == "none" or micro <= 1:
        return None
    half = -(-micro // 2)
    return replace(plan, micro_batch=half, optimizer_in_backward=False), f"micro-batches of {half} instead of {micro}"


def _more_checkpoints(plan: Plan, config: RunConfig, encoder: EncoderShape) -> Lowered | None:
    if config.encoder.trainable == "none" or plan.checkpoint_every == 1 or not encoder.fused_attention:
        return None
    return replace(plan, checkpoint_every=1), "the activations of every layer are computed again in backward"


def _smaller_fan_in(plan: Plan, config: RunConfig, encoder: EncoderShape) -> Lowered | None:
    smaller = [fan_in for fan_in in LADDER if fan_in < plan.fan_in]
    if not config.classifier.allow_lower_fan_in or plan.is_dense or not smaller:
        return None
    return replace(plan, fan_in=smaller[-1]), f"fan-in {smaller[-1]} instead of {plan.fan_in}"
