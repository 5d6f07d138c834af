"""What the planner makes of a configuration before it is started, in a sentence."""

from __future__ import annotations

from app.html import size
from app.shared import Shared
from engine.config import RunConfig
from engine.errors import EngineError
from engine.planning.encoders import encoder_shape
from engine.planning.hardware import Hardware, cpu_compute
from engine.planning.planner import Problem, make_plan
from engine.planning.report import classifier_words
from engine.words import counted


def planned(shared: Shared, config: RunConfig, data: str) -> tuple[str, bool]:
    """(a sentence, whether it is a problem); no sentence while the hardware or the number of labels is not known."""
    try:
        hardware = _hardware(shared, config)
        labels = shared.workspace.label_count(data)
        if hardware is None or labels is None:
            return "", False
        encoder = encoder_shape(config.encoder.name)
    except EngineError:
        return "", False  # what the planner does not know, the training looks up
    try:
        plan = make_plan(Problem(config, hardware, labels, encoder, config.data.max_tokens))
    except EngineError as error:
        return str(error), True
    memory = f"predicted peak {size(plan.predicted_bytes)} of {size(plan.budget_bytes)}"
    return f"{counted(plan.labels, 'label')}: {classifier_words(plan)}; {memory}", False


def _hardware(shared: Shared, config: RunConfig) -> Hardware | None:
    """This machine, with the processor alone where that is chosen."""
    found = shared.machine.hardware()
    if found is None or config.hardware.device != "cpu" or found.device == "cpu":
        return found
    memory = shared.machine.report["memory"]
    return Hardware("cpu", "CPU", memory["usable"], found.cores, cpu_compute(), memory["free"])
