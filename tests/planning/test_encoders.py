"""Shapes of encoders are those of the models: parameters, saved activations, what a configuration says."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from engine.bench.encoders import DISTILBERT, NAMES
from engine.errors import ConfigError
from engine.planning.activations import Activations, Precision
from engine.planning.encoders import ENCODERS, encoder_shape, shape_of

BATCH, TOKENS = 4, 64
KINDS = ["bert", "roberta", "distilbert", "mpnet", "modernbert"]


def small_config(kind: str, **changes):
    names = DISTILBERT if kind == "distilbert" else NAMES
    numbers = {"layers": 3, "hidden": 128, "heads": 4, "intermediate": 512, "vocabulary": 500, "positions": 130}
    return AutoConfig.for_model(
        kind, **{names[key]: value for key, value in numbers.items()}, pad_token_id=0, **changes
    )


def without_pooler(model):
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


@pytest.mark.parametrize("name", ENCODERS)
def test_parameters_of_a_named_encoder_are_the_models(name):
    shape = ENCODERS[name]
    names = DISTILBERT if shape.model_type == "distilbert" else NAMES
    settings = {key: getattr(shape, number) for number, key in names.items() if number != "types" or shape.types}
    with torch.device("meta"):
        model = without_pooler(AutoModel.from_config(AutoConfig.for_model(shape.model_type, **settings)))
    parameters = list(model.parameters())
    assert sum(shape.matrices) == sum(p.numel() for p in parameters if p.ndim > 1)
    assert shape.vectors == sum(p.numel() for p in parameters if p.ndim <= 1)
    assert shape == shape_of(model.config.to_dict())


def saved_bytes(model, padded: bool) -> int:
    """Bytes of the tensors that autograd keeps after a forward pass, parameters aside."""
    ids = torch.randint(5, 500, (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, TOKENS // 2 :] = 0
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("padded", [False, True], ids=["full texts", "padded"])
@pytest.mark.parametrize("compute", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_that_autograd_saves(kind, compute, padded):
    key = "attention_dropout" if kind in ("distilbert", "modernbert") else "attention_probs_dropout_prob"
    config = small_config(kind, **{key: 0.0})  # with it a CPU has no fused attention
    dtype = torch.bfloat16 if compute == "bf16" else torch.float32
    model = without_pooler(AutoModel.from_config(config)).to(dtype).train()
    shape = shape_of(config.to_dict())
    predicted = Activations(shape, Precision.of(compute, "cpu"), BATCH, TOKENS, "cpu", padded).saved(0)
    assert predicted == pytest.approx(saved_bytes(model, padded), rel=0.03)


def test_a_16_bit_layer_keeps_34_bytes_a_token_and_feature():
    shape = ENCODERS["bert-base-uncased"]
    layer = Activations(shape, Precision.of("bf16", "cuda"), 256, 128, padded=False).layer()
    assert layer / (256 * 128 * shape.hidden) == pytest.approx(34, rel=0.01)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_checkpointing_keeps_less_the_more_layers_are_computed_again(every):
    passes = Activations(ENCODERS["bert-base-uncased"], Precision.of("bf16", "cuda"), 64, 128)
    assert passes.saved(every) < passes.saved(every + 1) < passes.saved(0)
    assert passes.backward_peak(every) < passes.backward_peak(every + 1) < passes.backward_peak(0)
    assert passes.backward_peak(every) > passes.saved(every)


def test_a_directory_is_read_without_its_library(tmp_path):
    config = small_config("distilbert")
    config.save_pretrained(tmp_path)
    shape = encoder_shape(str(tmp_path))
    assert (shape.model_type, shape.layers, shape.hidden, shape.intermediate) == ("distilbert", 3, 128, 512)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", json.dumps({"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1})]
)
def test_a_directory_without_a_usable_configuration(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        encoder_shape(str(tmp_path))


def test_unknown_names_are_refused_with_the_known_ones():
    assert encoder_shape("sentence-transformers/all-MiniLM-L6-v2") == ENCODERS["all-MiniLM-L6-v2"]
    with pytest.raises(ConfigError, match=r"nobody/nothing.*bert-base-uncased"):
        encoder_shape("nobody/nothing")
