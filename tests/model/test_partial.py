"""A forward that starts at a later block gives the logits of the whole one, on every family."""

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.model import Add, Model


def test_same_logits_from_every_layer(model: Model) -> None:
    batch = model.batch([[5, 9, 7, 30, 4, 11], [8, 3, 2, 40, 17, 6]])
    with torch.no_grad():
        whole = model.logits(batch)
        for layer in range(model.n_layers):
            resid = model.capture(batch, f"resid_pre.{layer}")[f"resid_pre.{layer}"]
            with model.started(layer, resid):
                assert torch.equal(model.logits(batch), whole)
        assert torch.equal(model.logits(batch), whole)


def test_blocks_below_are_not_computed_and_edits_above_work(model: Model) -> None:
    batch = model.batch([[5, 9, 7, 30]])
    runs: list[int] = []
    handles = [
        model.layout.attn(layer).register_forward_hook(lambda *_, layer=layer: runs.append(layer))
        for layer in range(model.n_layers)
    ]
    vector = torch.linspace(-1, 1, model.d_model)
    with torch.no_grad():
        resid = model.capture(batch, "resid_pre.2")["resid_pre.2"]
        runs.clear()
        with model.started(2, resid), model.edited(Add("resid_post.2", vector)):
            part = model.logits(batch)
        assert runs == list(range(2, model.n_layers))
        with model.edited(Add("resid_post.2", vector)):
            assert torch.equal(part, model.logits(batch))
    for handle in handles:
        handle.remove()


def test_gradients_reach_the_given_stream(model: Model) -> None:
    batch = model.batch([[5, 9, 7]])
    resid = model.capture(batch, "resid_pre.1")["resid_pre.1"].detach().requires_grad_()
    with model.started(1, resid):
        model.logits(batch)[:, -1].logsumexp(-1).sum().backward()
    assert resid.grad is not None
    assert resid.grad.abs().sum() > 0


def test_bad_input(model: Model) -> None:
    batch = model.batch([[5, 9, 7]])
    resid = torch.zeros(1, 2, model.d_model)
    with pytest.raises(UsageError, match="layer=99: 0 to"), model.started(99, resid):
        pass
    with pytest.raises(UsageError, match=r"resid for block 1 has shape \[1, 2, "), model.started(1, resid):
        model.logits(batch)
    with pytest.raises(UsageError, match="leave that one first"), model.started(2, resid), model.started(1, resid):
        pass
    assert model.logits(batch).shape[1] == 3
