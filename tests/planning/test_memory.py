"""The memory model against what was measured, and against the constants of the code that it describes."""

import inspect
from dataclasses import replace

import pytest
import torch

from engine.planning import classifier_memory, memory
from engine.planning.encoders import ENCODERS
from engine.planning.memory import Setting, estimate, first_bucket

MIB = 2**20
BERT, DISTILROBERTA, MINILM = (
    ENCODERS[name] for name in ("bert-base-uncased", "distilroberta-base", "all-MiniLM-L6-v2")
)


def setting(encoder, labels, fan_in, batch, **changes) -> Setting:
    defaults = {"in_backward": True, "padded": False, "evaluation_batch": batch, "rewire": "none"}
    values = {"head": 0, "micro_batch": batch, "tokens": 128, **defaults, **changes}
    return Setting(
        labels=labels, width=encoder.hidden, fan_in=fan_in, group_size=32, weight_dtype="bf16", encoder=encoder,
        batch=batch, **values,
    )  # fmt: skip


# Peaks of torch's allocator on an H200, MiB, of grouping, making the classifier, steps, evaluation: bf16, fused
# kernels (benchmarks/results/pipeline-h200.md), with the workspaces that cuBLAS takes on that card by itself, which are
# those of deterministic runs.
LARGE_WORKSPACES = {"deterministic": True}
MEASURED = {
    "2.8M": (setting(BERT, 2_812_281, 128, 128, in_backward=False, **LARGE_WORKSPACES), (1270, 1397, 6578, 1688)),
    "670k, lean": (setting(BERT, 670_091, 128, 64, checkpoint_every=1, **LARGE_WORKSPACES), (None, 849, 1355, 1001)),
    "2.8M, lean": (
        setting(BERT, 2_812_281, 128, 128, checkpoint_every=1, **LARGE_WORKSPACES),
        (1270, 1397, 2391, 1689),
    ),
    "100M, lean": (
        setting(BERT, 100_000_000, 64, 128, checkpoint_every=1, **LARGE_WORKSPACES),
        (12967, 14016, 15015, 14313),
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_phases_measured_on_a_gpu(name):
    chosen, measured = MEASURED[name]
    phases = {phase: sum(parts.values()) / MIB for phase, parts in estimate(chosen).phases.items()}
    before = {phase: phases.pop(phase) for phase in ("encoder", "grouping", "classifier", "evaluation")}
    found = (before["grouping"], before["classifier"], max(phases.values()), before["evaluation"])
    for predicted, peak in zip(found, measured, strict=True):
        assert peak is None or 0.985 * peak < predicted < 1.03 * peak


# Peaks of steps and evaluation on an H100, MiB, with recorded passes (benchmarks/results/memory-model-h100.md).
RECORDED = {"cuda_graphs": True, "in_backward": False, "padded": True, "evaluation_batch": None, "rewire": "set"}
RECORDED_MEASURED = [
    (setting(MINILM, 39_034, 64, 128, tokens=96, head=1952, **RECORDED, clusters=64, coarse=8, local=32), 1510),
    (setting(MINILM, 39_034, 64, 32, tokens=32, head=1952, **RECORDED, clusters=64, coarse=8, local=32), 422),
    (setting(MINILM, 131_072, 192, 256, tokens=64, head=6554, **(RECORDED | {"padded": False})), 1889),
    (setting(DISTILROBERTA, 40_000, 384, 64, head=2000, **RECORDED), 2373),
    (setting(DISTILROBERTA, 670_091, 128, 128, **(RECORDED | {"padded": False})), 3868),
]


@pytest.mark.parametrize(("chosen", "measured"), RECORDED_MEASURED)
def test_recorded_passes_measured_on_a_gpu(chosen, measured):
    assert estimate(chosen).peak / MIB == pytest.approx(measured, rel=0.05, abs=40)


def test_a_whole_run_measured_on_a_gpu():
    """benchmarks/results/large-run-h200.md: 3.815 GiB."""
    changes = {"head": 140_614, "checkpoint_every": 1, "in_backward": False, "padded": True, "rewire": "set"}
    chosen = setting(BERT, 2_812_281, 384, 128, **changes, **LARGE_WORKSPACES, evaluation_batch=None)
    assert estimate(chosen).peak / MIB == pytest.approx(3.815 * 1024, rel=0.03)


def test_the_peak_is_the_largest_phase_and_the_sum_of_its_components():
    found = estimate(setting(BERT, 670_091, 128, 64))
    totals = {name: sum(parts.values()) for name, parts in found.phases.items()}
    assert found.peak == max(totals.values()) == totals[found.peak_phase]
    assert found.peak < sum(totals.values())
    assert all(size > 0 for parts in found.phases.values() for size in parts.values())


def test_on_a_cpu_everything_is_host_memory():
    found = estimate(setting(MINILM, 10_000, 64, 64, device="cpu", compute="fp32", backend="torch", trained=False))
    assert found.host == {}
    assert all("program" in parts for parts in found.phases.values())
    assert "matrix workspaces" not in found.phases["classifier step"]


FEW = {"batch": 8, "micro_batch": 8, "evaluation_batch": 8, "checkpoint_every": 1}
MODERNBERT = replace(ENCODERS["ModernBERT-base"], window=0)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch": 32, "micro_batch": 32}, {"batch": 64, "micro_batch": 64}),
        ({"tokens": 64}, {"tokens": 128}),
        ({"weight_dtype": "fp8"}, {"weight_dtype": "bf16"}),
        ({"in_backward": True, **FEW}, {"in_backward": False, **FEW}),
        ({"micro_batch": 8}, {"micro_batch": 64}),
        ({"checkpoint_every": 1}, {"checkpoint_every": 0}),
        ({"padded": False, "encoder": MODERNBERT}, {"padded": True, "encoder": MODERNBERT, "tokens": 128}),
        ({"group_size": 64}, {"group_size": 16}),
        ({"encoder_optimizer": "adamw8bit"}, {"encoder_optimizer": "adamw"}),
        ({"optimizer": "rowwise"}, {"optimizer": "adamw8bit"}),
        ({"intermediate": 0}, {"intermediate": 4096}),
        ({"clusters": 0}, {"clusters": 64, "coarse": 8, "local": 32}),
        ({"trained": False}, {"trained": True}),
        ({"compute": "bf16"}, {"compute": "fp32"}),
        ({"words": 64}, {"words": 256}),
        ({"words": 0}, {"words": 32}),
    ],
)
def test_what_costs_memory(less, more):
    base = vars(setting(BERT, 670_091, 128, 64, in_backward=False))
    assert estimate(Setting(**{**base, **less})).peak < estimate(Setting(**{**base, **more})).peak


def test_numbers_that_other_modules_own():
    from engine.inference.evaluation import EVALUATION_TOKENS, WORD_TEXTS
    from engine.kernels import products
    from engine.kernels.adamw8bit import QUANTIZATION_BLOCK
    from engine.model import classifier, features, local_features, rewiring
    from engine.tensorfile import PIECE_BYTES
    from engine.training.optimizers import PIECE

    assert memory.EVALUATION_TOKENS == EVALUATION_TOKENS
    assert memory.TOPK_INSTANCES == WORD_TEXTS
    assert memory.FEATURE_TOKENS == features.FEATURE_BATCH_TOKENS
    assert memory.PIECE == PIECE
    assert memory.MEANS == local_features.MEANS
    assert memory.SAVING_BYTES == PIECE_BYTES
    assert classifier_memory.INIT_ELEMENTS == classifier.INIT_ELEMENTS
    assert classifier_memory.REWIRING_ELEMENTS == rewiring.BLOCK_ELEMENTS
    assert classifier_memory.BLOCK_BYTES == products.BLOCK_BYTES
    assert classifier_memory.GATHER_COST == products.GATHER_COST
    assert classifier_memory.UNFORESEEN == products.UNFORESEEN
    assert classifier_memory.QUANTIZATION_BLOCK == QUANTIZATION_BLOCK


def test_numbers_of_the_fused_kernels():
    pytest.importorskip("triton")
    from engine.kernels import triton_backend

    assert classifier_memory.SCRATCH_BYTES == triton_backend.SCRATCH_BYTES
    assert classifier_memory.GROUP_SIZES == triton_backend.GROUP_SIZES
    assert f"else {classifier_memory.MOST_COPIES}" in inspect.getsource(triton_backend.launch_step)


@pytest.mark.parametrize("optimizer", ["rowwise", "sgd", "adamw8bit"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize(("words", "lead"), [(0, 0), (24, 0), (24, 10), (24, 40)])
def test_classifier_bytes_are_those_of_its_tensors(optimizer, dtype, words, lead):
    from engine.kernels import reference
    from engine.model.classifier import Classifier, ClassifierShape

    planned = replace(
        setting(MINILM, 1003, 16, 64), head=40, width=64, group_size=8, weight_dtype=dtype, optimizer=optimizer,
        words=words, head_words=2 * words, lead=lead, pairs=100 if lead else 0,
    )  # fmt: skip
    shape = ClassifierShape(1003, 40, 64, 16, 8, optimizer, dtype, words, 2 * words, planned.vocabulary, lead=lead)
    tensors = Classifier.new(shape, reference, "cpu", 0).tensors()
    predicted = planned.classifier()
    assert sum(predicted.values()) == pytest.approx(sum(t.nbytes for t in tensors.values()), rel=0.01)


def test_the_adapter_takes_what_its_optimizer_holds():
    from engine.config import RunConfig
    from engine.model.encoder import FeatureHead
    from engine.model.features import FeatureModel
    from engine.training.optimizers import make_optimizer

    head = FeatureHead(MINILM.hidden, 0, 0.0)
    head.add_adapter(1536)
    optimizer = make_optimizer(FeatureModel(None, head), RunConfig(), torch.device("cpu"), torch.float32, False, False)
    frozen = replace(setting(MINILM, 1000, 64, 8), trained=False, adapter=1536, device="cpu", compute="fp32")
    parts = memory.encoder_bytes(frozen)
    assert parts.pop("adapter") == pytest.approx(sum(t.nbytes for t in optimizer.tensors().values()), rel=0.002)
    assert not any(parts.values()), "nothing of the encoder itself is held"
    phases, without = estimate(frozen).phases, estimate(replace(frozen, adapter=0)).phases
    more = sum(phases["classifier step"].values()) - sum(without["classifier step"].values())
    assert more > 3 * 4 * 2 * MINILM.hidden * 1536, "the gradient and its copies"


@pytest.mark.parametrize("in_backward", [False, True])
def test_encoder_bytes_are_those_of_its_optimizer(in_backward):
    from engine.bench.encoders import new_encoder
    from engine.config import RunConfig
    from engine.model.encoder import FeatureHead
    from engine.model.features import FeatureModel
    from engine.training.optimizers import make_optimizer

    encoder = new_encoder("all-MiniLM-L6-v2", 0)
    model = FeatureModel(encoder, FeatureHead(encoder.width, 0, 0.0))
    optimizer = make_optimizer(model, RunConfig(), torch.device("cpu"), torch.bfloat16, in_backward, False)
    held = sum(t.nbytes for t in optimizer.tensors().values())
    predicted = memory.encoder_bytes(setting(MINILM, 1000, 64, 8, in_backward=in_backward))
    assert sum(predicted.values()) == pytest.approx(held, rel=0.002)
    matrices = next(segment for segment in optimizer.segments if segment.name == "encoder.matrices")
    assert first_bucket(MINILM)[0] == sum(parameter.numel() for parameter, _ in matrices.buckets[-1].slots)
