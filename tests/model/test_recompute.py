"""Recomputed layers: the same features, gradients and dropout as without, with only their inputs kept."""

import copy

import pytest
import torch

from engine.errors import ConfigError
from engine.model.encoder import TextEncoder, checkpoint_activations
from engine.model.recompute import seed_dropout

CPU = torch.device("cpu")
IDS = torch.arange(5, 45).view(4, 10)
MASK = (torch.arange(10)[None, :] < torch.tensor([[10], [7], [4], [1]])).long()


def new_encoder(kind="bert", **changes) -> TextEncoder:
    from transformers import AutoConfig, AutoModel

    sizes = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32},
        "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32},
    }
    sizes["roberta"] = sizes["bert"] | {"pad_token_id": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=32, **sizes[kind], **changes)
    model = AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return TextEncoder(model, "mean").train()


def gradients(encoder, seed=3):
    """(features, gradient of each parameter) of one pass with dropout."""
    seed_dropout(seed, CPU)
    x_BD = encoder(IDS, MASK)
    x_BD.square().mul(torch.arange(16.0)).sum().backward()
    return x_BD.detach(), [p.grad.clone() for p in encoder.parameters()]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_without_dropout_nothing_changes(kind):
    off = {"attention_dropout": 0, "dropout": 0} if kind == "distilbert" else {}
    off = off or {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0}
    plain = new_encoder(kind, **off)
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed, 1)
    x_BD, grads = gradients(plain)
    y_BD, others = gradients(checkpointed)
    assert torch.equal(x_BD, y_BD)
    for mine, theirs in zip(grads, others, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_is_the_same_when_a_layer_is_computed_again():
    """A gradient of other dropout than the forward pass's would not predict the change of the output."""
    encoder = new_encoder().double()
    checkpoint_activations(encoder, 1)
    weight = encoder.model.encoder.layer[1].output.dense.weight
    seed_dropout(3, CPU)
    encoder(IDS, MASK)[:, 0].sum().backward()
    row = weight.grad[0].clone()
    with torch.no_grad():
        seed_dropout(3, CPU)
        before = forward_in_training(encoder)
        weight[0] += 1e-4 * row / row.norm()
        after = forward_in_training(encoder)
    assert float(after - before) == pytest.approx(1e-4 * float(row.norm()), rel=0.02)


def forward_in_training(encoder) -> torch.Tensor:
    seed_dropout(3, CPU)
    with torch.enable_grad():
        return encoder(IDS, MASK)[:, 0].sum().detach()


def test_layers_do_not_share_their_dropout():
    encoder = new_encoder(hidden_dropout_prob=0.5)
    checkpoint_activations(encoder, 1)
    drawn = []
    for layer in encoder.model.encoder.layer:
        layer.output.dropout.register_forward_hook(lambda m, i, out: drawn.append(out == 0))
    seed_dropout(3, CPU)
    with torch.enable_grad():
        encoder(IDS, MASK)
    assert len(drawn) == 4
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def kept_bytes(encoder) -> int:
    """Bytes of the tensors that a forward pass keeps for backward, parameters aside."""
    parameters = {p.data_ptr() for p in encoder.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x_BD = encoder(IDS, MASK)
    assert x_BD.requires_grad
    return sum(kept.values())


def test_only_the_inputs_of_recomputed_layers_are_kept():
    plain, half, all_layers = new_encoder(), new_encoder(), new_encoder()
    checkpoint_activations(half, 2)
    checkpoint_activations(all_layers, 1)
    most, some, least = kept_bytes(plain), kept_bytes(half), kept_bytes(all_layers)
    assert least < 0.4 * most
    assert least < some < most
    assert abs(some - (least + most) / 2) < 0.1 * most


def test_a_forward_pass_without_gradients_keeps_nothing():
    encoder = new_encoder()
    checkpoint_activations(encoder, 1)
    with torch.no_grad():
        assert not encoder(IDS, MASK).requires_grad


def test_the_parameters_keep_their_names():
    encoder = new_encoder()
    names = list(encoder.state_dict())
    checkpoint_activations(encoder, 1)
    assert list(encoder.state_dict()) == names


def test_an_encoder_without_such_layers_is_refused():
    encoder = new_encoder()
    encoder.model.encoder.layer = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match=r"encoder\.checkpointing=off"):
        checkpoint_activations(encoder, 1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_the_mask_that_all_tokens_share_is_the_models_own(kind):
    encoder = new_encoder(kind).eval()
    assert encoder.broadcasts_mask
    x_BD = encoder(IDS, MASK)
    encoder.broadcasts_mask = False
    assert torch.allclose(x_BD, encoder(IDS, MASK), atol=1e-5)
