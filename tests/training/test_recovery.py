"""Out of memory: the plan gives way a notch at a time, what was updated is not updated twice, and the run goes on.

A CPU does not run out of memory in small pieces, so here a layer of the encoder refuses batches above a size, with
the error that a GPU's allocator raises. GPU-marked tests run under a real limit.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_optimizers import TOKENS, WANTED, masters, new_model, optimizer_of
from test_runs_end_to_end import TRAINABLE, assert_same_bits, train

from engine.cli import main
from engine.config import RunConfig
from engine.kernels.layer import LabelLayer
from engine.kernels.optimizers import new_state
from engine.model.rewiring import narrow_layer
from engine.planning.encoders import ENCODERS
from engine.planning.planner import Plan
from engine.runs import RunDirectory
from engine.training.recovery import advice, is_out_of_memory, lowered
from engine.training.trainer import Trainer
from tiny import make_encoder

BERT = ENCODERS["bert-base-uncased"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def plan(**changes) -> Plan:
    values = {
        "labels": 1000, "head": 50, "width": 768, "fan_in": 64, "group_size": 32, "weight_dtype": "bf16",
        "micro_batch": 128, "checkpoint_every": 0, "optimizer_in_backward": False, "device": "cuda",
        "compute": "bf16", "components": {}, "phases": {}, "classifier_bytes": 0, "predicted_bytes": 0,
        "budget_bytes": 0, "host_bytes": 0,
    }  # fmt: skip
    return Plan(**{**values, **changes})


def notches(start: Plan, **settings) -> list[str]:
    config, found = RunConfig.from_flat(settings), []
    while step := lowered(start, config, BERT):
        start, change = step
        found.append(change)
    return found


def test_the_micro_batch_gives_way_first_then_activations_then_the_micro_batch_again():
    assert notches(plan()) == [
        "micro-batches of 64 instead of 128",
        "the activations of every layer are computed again in backward",
        "micro-batches of 32 instead of 64",
    ]


def test_graphs_give_way_before_all_else_and_are_no_notch():
    first, change = lowered(plan(cuda_graphs=True), RunConfig(), BERT)
    assert first == plan() and "without CUDA graphs" in change
    assert len(notches(plan(cuda_graphs=True))) == 4


def test_the_fan_in_gives_way_third_and_only_with_leave():
    assert notches(plan(), **{"classifier.allow_lower_fan_in": True})[2] == "fan-in 48 instead of 64"


def test_with_a_frozen_encoder_only_the_fan_in_can():
    frozen = {"encoder.trainable": "none"}
    assert notches(plan(), **frozen) == []
    assert len(notches(plan(), **frozen, **{"classifier.allow_lower_fan_in": True})) == 3
    assert notches(plan(head=1000), **frozen, **{"classifier.allow_lower_fan_in": True}) == []


def test_smaller_batches_end_the_update_in_backward():
    lower, _ = lowered(plan(optimizer_in_backward=True), RunConfig(), BERT)
    assert (lower.micro_batch, lower.optimizer_in_backward, lower.notches) == (64, False, 1)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_backward_pass_that_is_taken_again_updates_nothing_twice(folder, in_backward, monkeypatch):
    monkeypatch.setattr("engine.training.optimizers.PIECE", 1 << 12)  # several buckets
    whole, broken = new_model(folder), new_model(folder)
    one, other = optimizer_of(whole, in_backward=in_backward), optimizer_of(broken, in_backward=in_backward)
    with one.stepping(1, 1.0):
        whole(TOKENS).backward(one.scaled(WANTED))
    word = broken.encoder.model.embeddings.word_embeddings.weight

    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = word.register_hook(fail)
    with pytest.raises(torch.OutOfMemoryError), other.stepping(1, 1.0):
        broken(TOKENS).backward(other.scaled(WANTED))
    handle.remove()
    assert all(parameter.grad is None for parameter in broken.parameters())
    assert any(bucket.updated for segment in other.segments for bucket in segment.buckets) == in_backward
    done = [[bucket.updated == 1 for bucket in segment.buckets] for segment in other.segments]
    other.step_after_backward()
    with other.stepping(1, 1.0):
        broken(TOKENS).backward(other.scaled(WANTED))
    for segment, mine, theirs, was_done in zip(one.segments, masters(one), masters(other), done, strict=True):
        for bucket, updated in zip(segment.buckets, was_done, strict=True):
            if updated or not in_backward:
                assert torch.allclose(mine[bucket.at], theirs[bucket.at], atol=2e-5), segment.name
            else:  # its gradient came through weights that had moved
                assert (mine[bucket.at] - theirs[bucket.at]).abs().mean() < 0.2e-3, segment.name


class LimitedMemory:
    """Makes a linear layer of the encoder refuse more than `rows` texts at a time while gradients are asked for, until
    it has done so `most` times."""

    def __init__(self, monkeypatch, rows: int, passes: int = 0) -> None:
        self.rows, self.passes, self.failures, self.most = rows, passes, 0, 1000
        true = torch.nn.Linear.forward

        def forward(module, x):
            if torch.is_grad_enabled() and x.ndim == 3 and len(x) > self.rows and self.failures < self.most:
                if self.passes <= 0:
                    self.failures += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                self.passes -= 1
            return true(module, x)

        monkeypatch.setattr(torch.nn.Linear, "forward", forward)


def test_a_run_goes_on_in_smaller_batches_and_says_so(tiny_flags, tmp_path, monkeypatch, capsys):
    limit = LimitedMemory(monkeypatch, rows=8, passes=150)
    run = train([*tiny_flags, *TRAINABLE, "--batch-size", "16"], tmp_path, "--epochs", "12", "--json")
    assert limit.failures == 1
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] > 0.3
    stored = json.loads((run / "plan.json").read_text())
    assert (stored["micro_batch"], stored["notches"]) == (8, 1)
    (said,) = [e["text"] for e in RunDirectory(run).events(["message"]) if "goes on with" in e["text"]]
    assert "Tried to allocate 2.00 GiB" in said
    assert "micro-batches of 8 instead of 16" in said


def test_after_three_notches_the_run_ends_with_advice_and_its_last_checkpoint(
    tiny_flags, tmp_path, monkeypatch, capsys
):
    limit = LimitedMemory(monkeypatch, rows=0, passes=400)
    flags = [*tiny_flags, *TRAINABLE, "--fan-in", "24", "--max-steps", "40", "--output", str(tmp_path)]
    assert main(["train", *flags]) == 4
    error = capsys.readouterr().err.strip().splitlines()[-1]
    (run,) = tmp_path.glob("2*")
    assert "out of memory after 3 changes of the plan" in error
    assert f"`engine train --resume {run}`; or go on with --allow-lower-fan-in" in error
    assert limit.failures == 4
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert list((run / "checkpoints").glob("step_*/manifest.json"))
    limit.rows = 100
    assert main(["train", "--resume", str(run)]) == 0


def test_a_run_that_ended_for_want_of_memory_goes_on_with_a_smaller_fan_in(tiny_flags, tmp_path, monkeypatch):
    limit = LimitedMemory(monkeypatch, rows=0, passes=400)
    flags = [*tiny_flags, *TRAINABLE, "--fan-in", "24", "--max-steps", "40", "--output", str(tmp_path)]
    assert main(["train", *flags]) == 4
    (run,) = tmp_path.glob("2*")
    ended = json.loads((run / "plan.json").read_text())
    limit.most = limit.failures + 3
    assert main(["train", "--resume", str(run), "--allow-lower-fan-in"]) == 0
    plan = json.loads((run / "plan.json").read_text())
    assert (ended["notches"], plan["notches"]) == (3, 6)
    assert plan["fan_in"] < ended["fan_in"]
    assert json.loads((run / "result.json").read_text())["fan_in"] == plan["fan_in"]


@pytest.mark.parametrize(("changes", "offered"), [({}, True), ({"fan_in": 16}, False), ({"head": 1000}, False)])
def test_a_smaller_fan_in_is_offered_where_there_is_one(changes, offered):
    text = advice(plan(**changes), "CUDA out of memory.", Path("runs/one"))
    assert ("--allow-lower-fan-in" in text) == offered
    assert "\n" not in text


def test_memory_that_torchs_allocator_does_not_manage_runs_out_as_well():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert not isinstance(error.value, torch.OutOfMemoryError)
    assert is_out_of_memory(error.value)
    with pytest.raises(RuntimeError) as error:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(error.value)
    for text in ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when"):
        assert is_out_of_memory(RuntimeError(text))


def test_a_run_goes_on_in_smaller_batches_where_the_processors_memory_ran_out(tiny_flags, tmp_path, monkeypatch):
    true = torch.nn.Linear.forward

    def forward(module, x):
        if torch.is_grad_enabled() and x.ndim == 3 and len(x) > 8:
            torch.empty(1 << 60, dtype=torch.uint8)
        return true(module, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    run = train([*tiny_flags, *TRAINABLE, "--batch-size", "16"], tmp_path, "--max-steps", "3")
    assert json.loads((run / "plan.json").read_text())["micro_batch"] == 8


def test_gradients_stay_the_same_in_smaller_batches(tiny_flags, tiny_encoder, tmp_path, monkeypatch):
    """Without dropout, whose noise is drawn a micro-batch at a time."""
    import shutil

    still = shutil.copytree(tiny_encoder, tmp_path / "still")
    config = json.loads((still / "config.json").read_text())
    off = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    (still / "config.json").write_text(json.dumps({**config, **off}))
    flags = [*tiny_flags, *TRAINABLE, "--encoder", str(still), "--max-steps", "6", "--set", "encoder.dropout=0"]
    flags += ["--set", "encoder.optimizer=adamw", "--set", "rewire.method=none"]
    whole = train(flags, tmp_path / "runs")
    LimitedMemory(monkeypatch, rows=8, passes=40)
    parts = train(flags, tmp_path / "runs")
    from test_runs_end_to_end import weights

    for name in ("tail.weight", "encoder.encoder.layer.0.output.dense.weight"):
        one, other = weights(whole)[name].float(), weights(parts)[name].float()
        assert (one - other).abs().mean() < 0.03 * one.abs().mean(), name


def test_confirming_a_plan_changes_nothing_after_the_checkpoint_is_loaded(tiny_flags, tmp_path, monkeypatch):
    plain = train([*tiny_flags, *TRAINABLE], tmp_path / "plain")
    fit = Trainer.fit

    def confirm_first(self, started):
        saved = self.save()
        self.confirm()
        self.load(saved)
        fit(self, started)

    monkeypatch.setattr(Trainer, "fit", confirm_first)
    confirmed = train([*tiny_flags, *TRAINABLE], tmp_path / "confirmed")
    assert_same_bits(plain, confirmed)
    assert "one worst-case step and evaluation" in (confirmed / "log.txt").read_text()


@pytest.mark.parametrize("optimizer", ["rowwise", "adamw8bit"])
def test_a_lowered_fan_in_lasts_over_a_stop_also_with_an_older_checkpoint(tiny_flags, tmp_path, monkeypatch, optimizer):
    flags = [*tiny_flags, *TRAINABLE, "--allow-lower-fan-in", "--fan-in", "24", "--set", "training.micro_batch=1"]
    flags += ["--set", f"classifier.optimizer={optimizer}", "--set", "encoder.checkpointing=every_1"]
    flags += ["--set", "checkpoint.every_minutes=0", "--max-steps", "6"]
    limit = LimitedMemory(monkeypatch, rows=0, passes=1200)  # in the fourth step
    monkeypatch.setattr("engine.training.recovery.MOST_NOTCHES", 1)
    assert main(["train", *flags, "--output", str(tmp_path)]) == 4
    (run,) = tmp_path.glob("2*")
    assert list((run / "checkpoints").glob("step_3/manifest.json"))  # with the larger fan-in
    assert json.loads((run / "plan.json").read_text())["fan_in"] == 16
    limit.rows = 100
    assert main(["train", "--resume", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["fan_in"] == 16
    assert main(["predict", str(run), "open the file"]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["rowwise", "adamw8bit"])
def test_a_narrower_layer_keeps_the_strongest_connections(dtype, optimizer):
    torch.manual_seed(0)
    labels, width, fan_in, group = 90, 64, 32, 8
    index = torch.rand(-(-labels // group), width).topk(fan_in, dim=1).indices.sort(dim=1).values.short()
    weight = torch.randn(labels, fan_in).to(dtype)
    layer = LabelLayer(weight, torch.zeros(labels), index, group, 5, new_state(optimizer, weight))
    before = replace(layer, weight=weight.clone())
    narrow_layer(layer, 16, optimizer)
    assert layer.weight.shape == (labels, 16)
    assert layer.weight.untyped_storage().nbytes() == labels * 16 * dtype.itemsize
    assert (layer.index.diff(dim=1) > 0).all()
    for number in range(len(index)):
        rows = slice(number * group, min((number + 1) * group, labels))
        strongest = before.weight[rows].float().square().sum(dim=0).topk(16).indices.sort().values
        assert torch.equal(layer.index[number], before.index[number][strongest])
        assert torch.equal(layer.weight[rows], before.weight[rows][:, strongest])
