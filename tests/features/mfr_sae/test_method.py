"""Gradients by finite differences and autograd, bit equality without the penalty, redraw rule, controls, bad input."""

import math
from collections.abc import Iterator

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features import Dictionary
from cutaway.features.dictionary import Provenance
from cutaway.features.mfr_sae import MfrConfig, PeerTrainer, likeness, recovery, train_peers, unevenness
from cutaway.features.mfr_sae.method import pull
from cutaway.features.mfr_sae.similarity import unit
from cutaway.planted.superposition import superposition

PLANTED = superposition(24, 32, 3.0, groups=4)


def rows(n: int, batch: int = 128) -> Iterator[torch.Tensor]:
    return (PLANTED.rows(batch, seed=i) for i in range(n))


def config(**changes: object) -> MfrConfig:
    settings = {"peers": 2, "n_latents": 40, "k": 3, "batch": 128, "rate": 1e-2, **changes}
    return MfrConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("matching", ["hungarian", "maximum"])
def test_the_penalty_s_gradient_equals_finite_differences(matching: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    atoms = [unit(each) for each in weights]
    trainer = PeerTrainer(
        torch.randn(20, 5, generator=generator),
        config(peers=3, n_latents=9, k=2, weight=1.0, matching=matching, warm_up=0),
    )
    with torch.no_grad():
        gradients, alike = trainer._pull(atoms)
    held = trainer._links

    def penalty(given: list[torch.Tensor]) -> float:
        made = [unit(each) for each in given]
        return 1 - sum(pull(own, torch.cat(made), link)[1] for own, link in zip(made, held, strict=True)) / 3

    pairwise = [likeness(atoms[i], atoms[j], matching) for i in range(3) for j in range(i)]
    assert penalty(weights) == pytest.approx(1 - sum(pairwise) / 3)
    assert alike == pytest.approx(1 - penalty(weights))
    for i, (peer, own) in enumerate(zip(trainer.peers, weights, strict=True)):
        peer.w = torch.nn.Parameter(own.clone())
        peer.w.grad = torch.zeros_like(own)
        with torch.no_grad():
            peer._towards(atoms[i], gradients[i])
        for row, column in ((0, 0), (4, 2), (8, 4)):
            ends = []
            for sign in (1, -1):
                moved = [each.clone() for each in weights]
                moved[i][row, column] += sign * 1e-5
                ends.append(penalty(moved))
            assert float(peer.w.grad[row, column]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_the_error_s_gradient_equals_autograd() -> None:
    trainer = PeerTrainer(PLANTED.rows(60).double(), config(peers=1, weight=0.0))
    (peer,) = trainer.peers
    x = PLANTED.rows(60).double() * trainer.scale
    for name in ("w", "b", "b_dec"):
        setattr(peer, name, torch.nn.Parameter(getattr(peer, name).detach().double() + 0.01))
    spread = (x - x.mean(0)).square().sum()
    with torch.no_grad():
        said = peer.learn(x, unit(peer.w), spread)
    by_hand = [getattr(peer, name).grad.clone() for name in ("w", "b", "b_dec")]
    for name in ("w", "b", "b_dec"):
        getattr(peer, name).grad = None
    pre = (x - peer.b_dec) @ peer.w.T + peer.b
    kept = torch.zeros_like(pre).scatter(1, pre.topk(3, dim=-1).indices, 1.0)
    loss = ((pre.relu() * kept) @ unit(peer.w) + peer.b_dec - x).square().sum() / spread
    loss.backward()
    assert said == pytest.approx(float(loss.detach()))
    for name, expected in zip(("w", "b", "b_dec"), by_hand, strict=True):
        assert torch.allclose(getattr(peer, name).grad, expected, atol=1e-9), name


def test_without_weight_peers_are_those_trained_alone_bit_for_bit() -> None:
    together = train_peers(rows(20), config(peers=3, weight=0.0, seed=0))
    for i, made in enumerate(together.dictionaries):
        alone = train_peers(rows(20), config(peers=1, weight=0.0, seed=i)).dictionaries[0]
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in alone.state_dict().items())
    assert not torch.equal(together.dictionaries[0].w_dec, together.dictionaries[1].w_dec)
    assert math.isnan(together.history[-1].likeness)


def test_peers_come_together_and_find_the_truth() -> None:
    apart = train_peers(rows(150), config(weight=0.0))
    pulled = train_peers(rows(150), config(weight=0.1, refresh=5, warm_up=20))
    atoms = [[each.atoms for each in made.dictionaries] for made in (apart, pulled)]
    assert likeness(*atoms[1]) > likeness(*atoms[0]) + 0.05
    assert pulled.history[-1].likeness == pytest.approx(likeness(*atoms[1]), abs=0.02)
    assert recovery(atoms[0][0], PLANTED.truth.atoms).mean > 0.9
    made = apart.dictionaries[0]
    assert isinstance(made, Dictionary)
    held = PLANTED.rows(500, seed=99)
    left = (made(held) - held).square().sum() / (held - held.mean(0)).square().sum()
    assert left < 0.2
    assert torch.allclose(made.w_dec.norm(dim=-1), torch.ones(40), atol=1e-5)


def test_controls_pull_to_what_cannot_be_learnt() -> None:
    for towards in ("random", "shuffled"):
        made = train_peers(rows(40), config(weight=1.0, towards=towards, warm_up=5))
        assert made.history[-1].likeness > made.history[1].likeness
        assert recovery(made.dictionaries[0].atoms, PLANTED.truth.atoms).mean < 0.8


@pytest.mark.parametrize("towards", ["peers", "random", "shuffled"])
def test_each_peer_is_paired_with_what_it_is_pulled_to(towards: str) -> None:
    trainer = PeerTrainer(PLANTED.rows(128), config(peers=3, weight=1.0, towards=towards))
    atoms = [unit(peer.w.detach()) for peer in trainer.peers]
    _, alike = trainer._pull(atoms)
    if towards == "random":
        pulled_to = [(i, trainer._targets[2 * i + other]) for i in range(3) for other in range(2)]
        assert len({float(each.sum()) for _, each in pulled_to}) == 6
    else:
        order = trainer._targets[0] if towards == "shuffled" else slice(None)
        pulled_to = [(i, atoms[j][:, order]) for i in range(3) for j in range(3) if j != i]
    assert alike == pytest.approx(sum(likeness(atoms[i], each) for i, each in pulled_to) / 6, abs=1e-6)


def test_the_weight_warms_up() -> None:
    assert [config(weight=2.0).weight_at(step) for step in (0, 50, 100, 500)] == pytest.approx([0, 1, 2, 2])


def test_redraw_where_the_rule_says_and_only_there() -> None:
    even = torch.full((40,), 3 / 40)
    assert unevenness(even, 3 / 40) == pytest.approx(0.0, abs=1e-12)
    rates = even.clone()
    rates[:8] = 3 * 3 / 40  # a fifth of the latents at three times their share: 0.2 * 2^3
    assert unevenness(rates, 3 / 40) == pytest.approx(1.6)

    def after(rates: torch.Tensor, limit: float) -> int:
        trainer = PeerTrainer(PLANTED.rows(128), config(peers=1, weight=0.0, redraw=limit, window=4))
        before = trainer.peers[0].w.detach().clone()
        trainer.peers[0].fired.copy_(rates * 4 * 128)
        trainer.done = 4
        trainer._redraw(PLANTED.rows(128))
        assert torch.equal(trainer.peers[0].w, before) == (trainer.peers[0].redrawn == 0)
        assert not trainer.peers[0].fired.any()
        return trainer.peers[0].redrawn

    assert [after(rates, limit) for limit in (1.5, 1.7)] == [1, 0]
    assert after(even, 1e-9) == 0
    made = train_peers(rows(12), config(peers=2, weight=0.0, redraw=1e-6, window=2, steps=12))
    assert made.redrawn == (3, 3)  # after steps 2, 4 and 6, the first half


def test_ctrl_c_keeps_what_was_learnt() -> None:
    def stopped() -> Iterator[torch.Tensor]:
        yield PLANTED.rows(300)
        raise KeyboardInterrupt

    made = train_peers(stopped(), config(), provenance=Provenance(site="resid_post.1"))
    assert (made.complete, len(made.history)) == (False, 2)
    about = made.dictionaries[1].provenance
    assert (about.site, about.tokens, about.settings["peer"]) == ("resid_post.1", 256, 1)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="k=50: at most"):
        config(k=50)
    with pytest.raises(UsageError, match="peers=1: a penalty"):
        config(peers=1)
    with pytest.raises(UsageError, match="did you mean 'random'"):
        config(towards="randon")
    with pytest.raises(UsageError, match="weight=-1"):
        config(weight=-1.0)
    with pytest.raises(UsageError, match="fewer than one batch"):
        train_peers([PLANTED.rows(5)], config())
    with pytest.raises(UsageError, match="all alike"):
        train_peers([torch.zeros(128, 24)], config())
    trainer = PeerTrainer(PLANTED.rows(128), config())
    before = [peer.w.detach().clone() for peer in trainer.peers]
    with pytest.raises(UsageError, match="NaN"):
        trainer.step(torch.full((128, 24), torch.nan))
    assert all(torch.equal(peer.w, w) for peer, w in zip(trainer.peers, before, strict=True))
