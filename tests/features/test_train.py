"""Training: hand-written gradients equal autograd, planted atoms come back, noise gives none, Ctrl-C keeps work."""

from collections.abc import Iterator

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features.dictionary import Provenance
from cutaway.features.train import Step, TrainConfig, Trainer, batches, train

D, TRUE, K = 24, 32, 3


def planted(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are sums of ``K`` of ``TRUE`` unit atoms with weights 1 to 2, and the atoms."""
    generator = torch.Generator().manual_seed(99)
    atoms = torch.randn(TRUE, D, generator=generator)
    atoms /= atoms.norm(dim=-1, keepdim=True)
    generator.manual_seed(seed)
    codes = torch.zeros(n, TRUE)
    chosen = torch.rand(n, TRUE, generator=generator).topk(K, dim=-1).indices
    codes.scatter_(1, chosen, 1 + torch.rand(n, K, generator=generator))
    return codes @ atoms, atoms


def similarity(found: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """The best cosine of each true atom with a found one."""
    return (atoms @ (found / found.norm(dim=-1, keepdim=True)).T).amax(-1)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_gradients_by_hand_equal_autograd(kind: str) -> None:
    rows = planted(50)[0].double()
    trainer = Trainer(rows, TrainConfig(n_latents=40, kind=kind, k=4, batch=50, aux_k=5, dead_after=10))
    made = trainer.dictionary.double()
    torch.nn.init.normal_(made.b_enc, std=0.1)
    trainer.silent[3:12] = 100  # dead ones take part
    x = rows * made.scale
    trainer._sparse(x, x)
    by_hand = {name: parameter.grad.clone() for name, parameter in made.named_parameters()}
    made.zero_grad()
    pre = (x - made.b_dec) @ made.w_enc.T + made.b_enc
    flat = pre.relu() if kind == "batchtopk" else None
    if flat is None:
        kept = torch.zeros_like(pre).scatter(1, pre.topk(4, dim=-1).indices, 1.0)
    else:
        kept = (flat >= flat.flatten().topk(4 * 50).values[-1]).double()
    missed = (pre.relu() * kept) @ made.w_dec + made.b_dec - x
    loss = missed.square().sum() / (x - x.mean(0)).square().sum()
    dead = torch.arange(3, 12)
    # What dead latents add is fitted to what was missed, taken as given; nor do they move the output's bias.
    centred = (x - made.b_dec).detach()
    alone = centred @ made.w_enc[dead].T + made.b_enc[dead]
    chosen = torch.zeros_like(alone).scatter(1, alone.topk(5, dim=-1).indices, 1.0)
    target = -missed.detach()
    extra = ((alone.relu() * chosen) @ made.w_dec[dead] - target).square().sum()
    (loss + extra / 32 / (target - target.mean(0)).square().sum()).backward()
    for name, parameter in made.named_parameters():
        assert torch.allclose(parameter.grad, by_hand[name], atol=1e-9), name
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("topk", {"k": K}),
        ("batchtopk", {"k": K}),
        ("relu", {"l1": 1.0}),
        ("jumprelu", {"l0": 0.1}),
        ("gated", {"l1": 4.0}),
    ],
)
def test_planted_atoms_come_back(kind: str, settings: dict[str, float]) -> None:
    config = TrainConfig(
        n_latents=64, kind=kind, batch=256, rate=8e-3, steps=400, warm_up=30, dead_after=20_000, **settings
    )
    rows, atoms = planted(config.batch * 100)
    trained = train((rows for _ in range(4)), config)
    assert similarity(trained.dictionary.atoms, atoms).quantile(0.2) > 0.9, trained
    fresh = planted(500, seed=7)[0]
    left = (trained.dictionary(fresh) - fresh).square().sum() / (fresh - fresh.mean(0)).square().sum()
    assert left < 0.15
    assert trained.dictionary.encode(fresh).l0.mean() < 4 * K


@pytest.mark.parametrize(
    ("kind", "skip"), [("topk", False), ("topk", True), ("batchtopk", True), ("relu", False), ("gated", True)]
)
def test_a_transcoder_learns_what_one_place_writes_from_another(kind: str, skip: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    out = torch.nn.functional.normalize(torch.randn(TRUE, 10, generator=generator), dim=-1) * 20
    matrix = 5 * torch.randn(D, 10, generator=generator) if skip else torch.zeros(D, 10)

    def pair(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, atoms = planted(n, seed)
        codes = torch.linalg.lstsq(atoms.T, x.T).solution.T  # any map that x decides
        return x, codes.relu() @ out + x @ matrix + 3.0

    config = TrainConfig(n_latents=48, kind=kind, k=8, batch=256, rate=1e-2, warm_up=10, skip=skip, l1=0.05, l0=0.002)
    trained = train((pair(256, i) for i in range(120)), config, provenance=Provenance(site="a", target="b"))
    made = trained.dictionary
    x, y = pair(500, 9999)
    left = (made(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert left < (0.15 if skip else 0.5), trained
    assert abs(float(left) - trained.history[-1].fvu) < 0.1  # what is folded computes what was trained
    assert (made.d_in, made.d_out, made.subtract_bias, made.w_skip is not None) == (D, 10, False, skip)
    assert made.provenance.target == "b"


def test_gradients_of_a_transcoder_equal_autograd() -> None:
    x, y = planted(50)[0].double(), planted(50, 3)[0][:, :9].double()
    trainer = Trainer(x, TrainConfig(n_latents=40, k=4, batch=50, skip=True), y)
    made = trainer.dictionary.double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, y = x * trainer.scale, y * trainer.scale_out
    trainer._sparse(x, y)
    by_hand = {name: parameter.grad.clone() for name, parameter in made.named_parameters()}
    made.zero_grad()
    ((made(x) - y).square().sum() / (y - y.mean(0)).square().sum()).backward()
    for name, parameter in made.named_parameters():
        assert torch.allclose(parameter.grad, by_hand[name], atol=1e-9), name


def test_noise_gives_no_atoms() -> None:
    """On rows without structure no direction is preferred: found atoms are no nearer to the true ones than chance."""
    atoms = planted(1)[1]
    noise = torch.randn(256 * 60, D, generator=torch.Generator().manual_seed(3))
    trained = train([noise], TrainConfig(n_latents=64, k=K, batch=256, rate=4e-3))
    chance = similarity(torch.randn(64, D, generator=torch.Generator().manual_seed(4)), atoms)
    assert abs(float(similarity(trained.dictionary.atoms, atoms).mean() - chance.mean())) < 0.08
    assert trained.history[-1].fvu > 0.4


def test_same_seed_same_dictionary_and_batches_keep_order() -> None:
    rows = planted(1000)[0]
    config = TrainConfig(n_latents=40, k=K, batch=100)
    whole = train([rows], config)
    parts = train(rows.split(77), config)
    assert torch.equal(whole.dictionary.w_dec, parts.dictionary.w_dec)
    assert torch.equal(torch.cat(list(batches(rows.split(77), 100))), rows)
    assert (whole.dictionary.provenance.tokens, len(whole.history)) == (1000, 10)


def test_ctrl_c_keeps_what_was_learnt() -> None:
    def rows() -> Iterator[torch.Tensor]:
        yield planted(300)[0]
        raise KeyboardInterrupt

    trained = train(rows(), TrainConfig(n_latents=40, k=K, batch=100))
    assert (trained.complete, len(trained.history)) == (False, 3)


def test_rate_warms_up_and_cools_down() -> None:
    config = TrainConfig(rate=0.1, warm_up=10, steps=100, cool_down=0.5)
    assert [config.rate_at(step) for step in (0, 9, 49, 75)] == pytest.approx([0.01, 0.1, 0.1, 0.05])


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="did you mean 'topk'"):
        TrainConfig(kind="topkk")
    with pytest.raises(UsageError, match="k=99: at most"):
        TrainConfig(n_latents=40, k=99)
    with pytest.raises(UsageError, match="rate=3"):
        TrainConfig(rate=3.0)
    with pytest.raises(UsageError, match="fewer than one batch of 4096"):
        train([planted(10)[0]])
    with pytest.raises(UsageError, match="NaN"):
        train([torch.full((100, 4), torch.nan)], TrainConfig(n_latents=8, k=2, batch=100))
    for alike in (torch.zeros(100, 4), torch.ones(100, 4) * 0.3):
        with pytest.raises(UsageError, match="100 rows of a batch are all alike"):
            train([alike], TrainConfig(n_latents=8, k=2, batch=100))
    with pytest.raises(UsageError, match="learn to copy"):
        train([planted(200)[0]], TrainConfig(n_latents=40, k=2, batch=100, skip=True))
    with pytest.raises(UsageError, match="needs the rows it writes"):
        Trainer(planted(9)[0], TrainConfig(n_latents=40, k=2), planted(9)[0]).step(planted(9)[0])
    seen: list[Step] = []
    train([planted(200)[0]], TrainConfig(n_latents=40, k=2, batch=100), tick=seen.append)
    assert [step.rows for step in seen] == [100, 200]
