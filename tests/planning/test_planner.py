"""What the planner chooses, and what it never does."""

import random
from dataclasses import replace

import pytest

from engine.config import RunConfig, parse_assignment, resolve
from engine.errors import ConfigError, MemoryBudgetError
from engine.planning.encoders import ENCODERS
from engine.planning.hardware import CUDA_CONTEXT, GIB, Hardware
from engine.planning.planner import HEADROOM, LADDER, Plan, Problem, budget_bytes, make_plan, most_labels
from engine.planning.report import plan_line, reasons

CARD = Hardware("cuda", "a card", 80 * GIB, 8, "bf16")


def problem(labels=670_091, gib=8.0, encoder="bert-base-uncased", tokens=128, hardware=CARD, **keys) -> Problem:
    values = {name.replace("__", "."): value for name, value in keys.items()}
    config = RunConfig.from_flat({"hardware.memory_gib": gib, **values})
    return Problem(config, hardware, labels, ENCODERS[encoder], tokens)


def fan_in(case: Problem) -> int:
    """Of the plan; 0 where nothing fits."""
    try:
        return make_plan(case).fan_in
    except MemoryBudgetError:
        return 0


def random_problem(rng: random.Random) -> Problem:
    device = rng.choice(["cuda", "cuda", "cpu"])
    compute = rng.choice(["bf16", "fp16"]) if device == "cuda" else "fp32"
    keys = {
        "training__batch_size": rng.choice([8, 32, 128, 300]),
        "encoder__trainable": rng.choice(["all", "none"]),
        "encoder__optimizer": rng.choice(["adamw8bit", "adamw"]),
        "classifier__optimizer": rng.choice(["rowwise", "sgd", "adamw8bit"]),
        "classifier__head_fraction": rng.choice(["auto", 0.0, 0.05]),
        "classifier__group_size": rng.choice(["auto", 1, 16, 32]),
        "rewire__method": rng.choice(["set", "rigl", "none"]),
    }
    return problem(
        int(10 ** rng.uniform(3, 8.3)), rng.uniform(2, 32), rng.choice(list(ENCODERS)), rng.choice([16, 96, 256]),
        replace(CARD, device=device, compute=compute), **keys,
    )  # fmt: skip


SEEDS = range(60)


def with_memory(case: Problem, factor: float) -> Problem:
    values = case.config.flat()
    values["hardware.memory_gib"] *= factor
    return replace(case, config=RunConfig.from_flat(values))


@pytest.mark.parametrize("seed", SEEDS)
def test_more_memory_never_gives_a_smaller_fan_in(seed):
    rng = random.Random(seed)
    case = random_problem(rng)
    assert fan_in(with_memory(case, rng.uniform(1.0, 2.0))) >= fan_in(case)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_labels_never_give_a_larger_fan_in(seed):
    rng = random.Random(1000 + seed)
    case = random_problem(rng)
    assert fan_in(replace(case, labels=int(case.labels * rng.uniform(1.0, 2.0)))) <= fan_in(case)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_never_exceeds_its_budget(seed):
    case = random_problem(random.Random(2000 + seed))
    if not fan_in(case):
        pytest.skip("nothing fits")
    plan = make_plan(case)
    assert plan.predicted_bytes * HEADROOM <= plan.budget_bytes
    assert plan.predicted_bytes == sum(plan.components.values()) == max(plan.phases.values())
    assert plan.fan_in in LADDER or plan.fan_in in (plan.width // 2, plan.width)
    assert plan.micro_batch == case.config.training.batch_size or not plan.optimizer_in_backward


@pytest.mark.parametrize(("profile", "labels"), [("8gb", 35_000_000), ("24gb", 150_000_000)])
def test_label_counts_that_a_profile_holds_with_bert_base(profile, labels):
    config, _ = resolve(profile, {"data.max_tokens": 128}, {})
    plan = make_plan(Problem(config, CARD, labels, ENCODERS["bert-base-uncased"], 128))
    assert plan.fan_in >= 64
    assert plan.weight_dtype == "bf16"


def test_with_memory_to_spare_nothing_is_given_up():
    plan = make_plan(problem(gib=80))
    assert (plan.fan_in, plan.group_size, plan.micro_batch) == (384, 32, 128)
    assert plan.head == round(0.05 * 670_091)
    assert not plan.checkpoint_every
    assert not plan.optimizer_in_backward


def test_checkpointing_comes_before_the_update_in_backward_and_that_before_micro_batches():
    ways = []
    for hundredths in range(500, 100, -2):
        try:
            pinned = {
                "classifier__fan_in": 128,
                "classifier__group_size": 32,
                "words__fan_in": 0,
                "training__batch_size": 64,
            }
            plan = make_plan(problem(gib=hundredths / 100, **pinned))
        except MemoryBudgetError:
            break
        ways.append((plan.micro_batch < 64, plan.optimizer_in_backward, bool(plan.checkpoint_every)))
    assert ways == sorted(ways, key=lambda way: way[:2])
    assert ways[0] == (False, False, False)
    assert (False, False, True) in ways
    assert (False, True, True) in ways
    assert ways[-1][0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"encoder__cuda_graphs": "off"}, False),
        ({"encoder__compile": True}, False),
        ({"encoder__checkpointing": "every_1"}, False),
        ({"encoder__optimizer_in_backward": True}, False),
        ({"training__micro_batch": 64}, False),
        ({"encoder__trainable": "none"}, False),
        ({"encoder": "all-mpnet-base-v2"}, False),  # their masks are made while they compute
        ({"encoder": "ModernBERT-base"}, False),
        ({"encoder": "all-MiniLM-L6-v2"}, True),
        ({"encoder": "bert-base-uncased"}, False),  # computing takes longer than launching
        ({"encoder": "bert-base-uncased", "tokens": 64}, True),
        ({"hardware": replace(CARD, compute="fp16")}, False),
        ({"hardware": replace(CARD, device="cpu", compute="bf16")}, False),
    ],
)
def test_passes_are_recorded_where_that_works(changes, expected):
    case = problem(40_000, gib=16, **({"encoder": "distilroberta-base"} | changes))
    assert make_plan(case).cuda_graphs == expected


def test_graphs_are_given_up_before_anything_else():
    """Less memory never brings them back, and whatever costs time comes after them."""
    pinned = {"encoder": "distilroberta-base", "classifier__fan_in": 64}
    plans = [make_plan(problem(40_000, gib=gib / 10, **pinned)) for gib in range(80, 20, -1)]
    with_graphs = [plan.cuda_graphs for plan in plans]
    assert with_graphs == sorted(with_graphs, reverse=True) and True in with_graphs
    last = plans[with_graphs.index(False) - 1]
    first = plans[with_graphs.index(False)]
    assert not first.checkpoint_every and first.micro_batch == 128
    assert first.words == last.words and first.head == last.head
    said = reasons(problem(40_000, gib=8.0, **pinned), plans[0])[-1]
    without = make_plan(problem(40_000, gib=8.0, **pinned, encoder__cuda_graphs="off"))
    assert said.startswith("CUDA graphs") and said.endswith(f"needs {HEADROOM * without.predicted_bytes / GIB:.2f} GiB")


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("classifier__fan_in", 48, "fan_in", 48),
        ("classifier__group_size", 16, "group_size", 16),
        ("classifier__weight_dtype", "fp8", "weight_dtype", "fp8"),
        ("training__micro_batch", 16, "micro_batch", 16),
        ("encoder__checkpointing", "every_2", "checkpoint_every", 2),
        ("encoder__checkpointing", "off", "checkpoint_every", 0),
        ("encoder__optimizer_in_backward", True, "optimizer_in_backward", True),
        ("classifier__head_fraction", 0.1, "head", 67_009),
    ],
)
def test_what_is_pinned_stays(key, value, field, expected):
    assert getattr(make_plan(problem(gib=12, **{key: value})), field) == expected


@pytest.mark.parametrize(
    ("labels", "changes", "expected"),
    [
        (149_796, {}, (149_796, 1024, 768)),
        (149_797, {}, (7490, 1024, 384)),
        (300_000, {"words__fan_in": 0}, (300_000, 0, 768)),
        (1000, {"classifier__fan_in": 64}, (50, 1024, 64)),
        (1000, {"classifier__head_fraction": 0.1}, (100, 1024, 384)),
        (1000, {"encoder__trainable": "none"}, (50, 4096, 768)),
        (149_797, {"encoder__trainable": "none"}, (7490, 4096, 384)),
        (1_000_000, {"classifier__fan_in": "dense"}, (1_000_000, 0, 768)),
    ],
)
def test_dense_when_asked_for_and_all_features_where_labels_are_few(labels, changes, expected):
    plan = make_plan(problem(labels, gib=40, **changes))
    assert (plan.head, plan.head_words, plan.fan_in) == expected
    assert plan.head == labels or plan.words == (256 if plan.fan_in < 768 else 1024)


@pytest.mark.parametrize(
    ("labels", "changes", "expected"),
    [
        (37_449, {}, (768, 1024, 4096)),
        (37_450, {}, (384, 256, 4096)),
        (37_450, {"encoder__trainable": "all"}, (768, 0, 1024)),
        (1000, {"classifier__fan_in": 64}, (64, 256, 4096)),
        (1000, {"classifier__fan_in": 64, "words__fan_in": 64}, (64, 64, 1024)),
        (1000, {"classifier__fan_in": 64, "words__fan_in": 5000}, (64, 5000, 5000)),
        (1000, {"classifier__fan_in": "dense", "words__fan_in": 256}, (768, 0, 1024)),
        (1000, {"words__fan_in": 0}, (768, 0, 0)),
    ],
)
def test_features_and_words_of_a_frozen_encoder_on_a_processor(labels, changes, expected):
    host = replace(CARD, device="cpu", compute="fp32")
    plan = make_plan(problem(labels, gib=16, hardware=host, **{"encoder__trainable": "none"} | changes))
    assert (plan.fan_in, plan.words, plan.head_words) == expected


@pytest.mark.parametrize(
    ("labels", "changes", "expected"),
    [
        (100_000, {}, 64),
        (1000, {}, 50),
        (100_000, {"classifier__head_fraction": 0.0}, 0),
        (100_000, {"words__lead_labels": 200}, 200),
        (100_000, {"words__lead_labels": 0}, 0),
        (100_000, {"words__fan_in": 0}, 0),
        (100_000, {"classifier__fan_in": "dense"}, 0),
        (100_000, {"classifier__fan_in": "dense", "words__fan_in": 256}, 0),
        (100_000, {"encoder__trainable": "all"}, 0),
        (100_000, {"encoder__trainable": "all", "words__lead_labels": 20}, 20),
    ],
)
def test_the_most_frequent_labels_of_a_frozen_encoder_read_all_words(labels, changes, expected):
    plan = make_plan(problem(labels, gib=16, **{"encoder__trainable": "none", "classifier__fan_in": 64} | changes))
    assert plan.lead == expected
    assert plan.lead <= plan.head


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoder__trainable": "none"}, 32_768),
        ({}, 0),
        ({"words__pairs": 500}, 500),
        ({"encoder__trainable": "none", "words__pairs": 0}, 0),
        ({"encoder__trainable": "none", "words__fan_in": 0}, 0),
        ({"encoder__trainable": "none", "words__fan_in": 32}, 32_768),  # for the labels that read all words
        # head labels read 512, too few for pairs
        ({"encoder__trainable": "none", "words__fan_in": 32, "words__lead_labels": 0}, 0),
    ],
)
def test_pairs_are_words_where_the_encoder_is_frozen(changes, expected):
    plan = make_plan(problem(300_000, gib=40, **changes))
    assert plan.pairs == expected
    assert plan.vocabulary == (
        0 if changes.get("words__fan_in") == 0 else ENCODERS["bert-base-uncased"].vocabulary + expected
    )


@pytest.mark.parametrize(
    ("labels", "changes", "expected"),
    [
        (838_860, {"classifier__fan_in": 64}, 16),
        (838_861, {"classifier__fan_in": 64}, 32),
        (262_144, {"classifier__fan_in": 768}, 16),
        (149_796, {}, 16),
        (149_796, {"encoder__trainable": "none"}, 32),
        (900_000, {"classifier__fan_in": 64, "classifier__group_size": 16}, 16),
    ],
)
def test_groups_are_of_16_where_labels_are_few_and_the_encoder_is_trained(labels, changes, expected):
    assert make_plan(problem(labels, gib=40, **changes)).group_size == expected


def test_dense_head_labels_are_given_up_only_where_they_cost_fan_in_below_64():
    plan = make_plan(problem(35_000_000))
    assert (plan.fan_in, plan.head < 0.05 * 35_000_000) == (64, True)
    assert make_plan(problem(35_000_000, classifier__head_fraction=0.05)).fan_in < 64


def test_budget_is_memory_less_reserve_and_context():
    assert budget_bytes(problem(gib=8.0).config, CARD) == int(7.5 * GIB) - CUDA_CONTEXT
    busy = replace(CARD, free_bytes=5 * GIB)
    assert budget_bytes(problem(gib=8.0).config, busy) == 5 * GIB - CUDA_CONTEXT
    assert budget_bytes(problem(gib="auto").config, busy) == int(4.5 * GIB) - CUDA_CONTEXT
    assert budget_bytes(problem(gib=8.0).config, replace(CARD, device="cpu")) == int(7.5 * GIB)


def test_what_cannot_be_combined():
    with pytest.raises(ConfigError, match="= 800 exceeds the 768 features"):
        make_plan(problem(classifier__fan_in=800))
    old = replace(CARD, compute="fp16")
    with pytest.raises(ConfigError, match="fp16"):
        make_plan(problem(hardware=old, encoder__optimizer_in_backward=True))
    assert not make_plan(problem(gib=3.0, hardware=old)).optimizer_in_backward


def test_when_nothing_fits_changes_are_named_that_do():
    case = problem(40_000_000, gib=6.0, classifier__fan_in=128)
    with pytest.raises(MemoryBudgetError) as error:
        make_plan(case)
    text = str(error.value)
    assert "\n" not in text
    assert "5.05 GiB may be taken" in text
    assert text.count("; or ") == 2
    assert "classifier.fan_in=auto" in text
    assert make_plan(problem(40_000_000, gib=6.0)).fan_in < 128
    labels = most_labels(case, budget_bytes(case.config, CARD))
    assert make_plan(replace(case, labels=labels)).fan_in == 128


def advice(case: Problem) -> list[str]:
    """What would fit instead, as it is printed."""
    with pytest.raises(MemoryBudgetError) as error:
        make_plan(case)
    return str(error.value).partition("What would fit: ")[2].split("; or ")


def followed(case: Problem, text: str) -> Problem:
    """The problem after that advice."""
    values = case.config.flat()
    for change in text.partition(" (needs ")[0].split(" and "):
        if change.startswith("at most "):
            case = replace(case, labels=int(change.split()[2].replace(",", "")))
        elif change.startswith(("a card with ", "a machine with ")):
            gib = float(change.split()[3])
            case = replace(case, hardware=replace(case.hardware, memory_bytes=int(gib * GIB)))
            values["hardware.memory_gib"] = gib
        else:
            key, value = parse_assignment(change)
            values[key] = value
            if key == "data.max_tokens":
                case = replace(case, tokens=int(value))
    return replace(case, config=RunConfig.from_flat(values))


@pytest.mark.parametrize("seed", SEEDS)
def test_three_changes_are_named_and_each_makes_it_fit(seed):
    rng = random.Random(3000 + seed)
    case = random_problem(rng)
    if rng.random() < 0.5:
        pins = [("training.micro_batch", 4), ("encoder.checkpointing", "off"), ("classifier.fan_in", "dense")]
        case = replace(case, config=RunConfig.from_flat(case.config.flat() | dict([rng.choice(pins)])))
    case = with_memory(case, rng.uniform(0.05, 0.15))
    case = replace(case, hardware=replace(case.hardware, memory_bytes=int(case.config.hardware.memory_gib * GIB)))
    if fan_in(case):
        pytest.skip("it fits")
    named = advice(case)
    assert len(set(named)) == 3
    for text in named:
        assert fan_in(followed(case, text)), text


def test_memory_that_the_card_has_is_a_setting_and_more_is_another_card():
    assert "hardware.memory_gib=5.75" in advice(problem(100_000_000, gib=4.0))
    small = replace(CARD, memory_bytes=4 * GIB)
    assert "a card with 5.75 GiB" in advice(problem(100_000_000, gib=4.0, hardware=small))
    busy = replace(CARD, free_bytes=4 * GIB)
    assert "5.75 GiB of free memory" in advice(problem(100_000_000, gib="auto", hardware=busy))


def test_a_plan_survives_its_file():
    plan = make_plan(problem())
    assert Plan(**plan.to_json()) == plan


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"encoder__trainable": "none"}, 4 * 768),
        ({"encoder__trainable": "none", "adapter__width": 100}, 100),
        ({"encoder__trainable": "none", "adapter__width": 0}, 0),
        ({"encoder__trainable": "none", "intermediate__width": 512}, 0),
        ({"encoder__trainable": "none", "intermediate__width": 512, "adapter__width": 64}, 64),
        ({}, 0),
    ],
)
def test_an_adapter_is_there_where_nothing_else_below_the_classifier_trains(keys, expected):
    plan = make_plan(problem(**keys))
    assert plan.adapter == expected
    assert ("adapter" in plan.components) == bool(expected)
    assert ("adapter" in plan_line(plan)) == (f"adapter of {expected:,}" in plan_line(plan)) == bool(expected)


def test_an_adapter_is_not_for_an_encoder_that_trains():
    with pytest.raises(ConfigError, match=r"adapter\.width = 64 is for a frozen encoder"):
        problem(adapter__width=64)


def test_a_plan_of_before_there_were_adapters_has_none():
    stored = make_plan(problem(encoder__trainable="none")).to_json()
    del stored["adapter"]
    assert Plan.from_json(stored).adapter == 0
