from __future__ import annotations

import torch

from engine.model.encoder import FeatureHead, unit_scale


def new_head(center: bool = False, intermediate: int = 0) -> FeatureHead:
    torch.manual_seed(0)
    return FeatureHead(12, intermediate, 0.0, torch.randn(12) if center else None)


def test_an_adapter_begins_as_nothing():
    head, x_BD = new_head(center=True), torch.randn(5, 12)
    before = head(x_BD)
    head.add_adapter(48)
    assert torch.allclose(head(x_BD), before, atol=1e-6)


def test_a_trained_one_changes_where_texts_lie_and_not_how_long_they_are():
    head, x_BD = new_head(center=True), torch.randn(5, 12)
    before = head(x_BD)
    head.add_adapter(48)
    torch.nn.init.normal_(head.adapter.up.weight)
    after = head(x_BD)
    assert (after - before).abs().max() > 0.1
    assert torch.allclose(after.norm(dim=1), torch.full((5,), 12**0.5), atol=1e-4)


def test_from_the_first_step_on_the_last_layer_learns_and_then_all_of_it():
    head, x_BD = new_head(), torch.randn(5, 12)
    head.add_adapter(48)
    direction = torch.randn(5, 12)
    for step in range(2):
        head.zero_grad()
        (head(x_BD) * direction).sum().backward()
        assert head.adapter.up.weight.grad.abs().sum() > 0
        assert (head.adapter.down.weight.grad.abs().sum() > 0) == (step > 0)
        with torch.no_grad():
            for parameter in head.adapter.parameters():
                parameter -= 0.01 * parameter.grad


def test_it_stands_before_the_intermediate_layer():
    head, x_BD = new_head(intermediate=30), torch.randn(5, 12)
    head.add_adapter(48)
    torch.nn.init.normal_(head.adapter.up.weight)
    wanted = unit_scale(torch.relu(head.linear(unit_scale(head.adapter(x_BD)))))
    assert torch.allclose(head(x_BD), wanted, atol=1e-6)
    assert set(head.parts()) == {"intermediate", "adapter"}
