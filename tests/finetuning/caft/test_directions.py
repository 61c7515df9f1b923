"""Spans of concepts, components of a change in one pass, dictionary latents, and the choice among candidates."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cutaway.errors import UsageError
from cutaway.finetuning.caft.directions import (
    Concept,
    attributed_latents,
    change_components,
    concept,
    labelled_direction,
    last_states,
    random_concept,
    random_subset,
    select,
    selectivity,
    streamed_components,
)
from cutaway.finetuning.caft.method import Task, component_concept, latent_concept, tune
from cutaway.finetuning.choice import Choice, choice_data, margins
from cutaway.model import Add, Model
from cutaway.planted.spurious import TwoRules
from cutaway.training import TrainConfig

SITE = "resid_post.1"


def test_dependent_directions_are_made_orthonormal_and_the_rank_is_told(model: Model) -> None:
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    span = concept(model, "resid_post.0", torch.cat([rows, rows[:1] - 2 * rows[2:]]))
    assert (span.rank, span.given) == (3, 4)
    assert repr(span) == "Concept(resid_post.0, rank 3 of 4 directions)"
    assert torch.allclose(span.basis @ span.basis.T, torch.eye(3), atol=1e-6)
    assert torch.allclose(rows @ span.basis.T @ span.basis, rows, atol=1e-5)
    assert concept(model, "resid_post.0", rows[0]).rank == 1


@pytest.mark.parametrize(
    ("site", "directions", "match"),
    [
        ("resid_post.9", torch.ones(16), "9"),
        ("neurons.0", torch.ones(16), "one place in the residual stream"),
        ("resid_post.*", torch.ones(16), "one place in the residual stream"),
        ("resid_post.0", torch.ones(12), "16 entries"),
        ("resid_post.0", torch.full((16,), float("nan")), "finite"),
        ("resid_post.0", torch.stack([torch.ones(16), torch.zeros(16)]), "direction 1 is zero"),
    ],
)
def test_what_cannot_be_removed_is_refused(model: Model, site: str, directions: torch.Tensor, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        concept(model, site, directions)


def test_random_spans_have_the_rank_and_come_from_their_seed(model: Model) -> None:
    like = concept(model, "resid_post.0", torch.eye(16)[:3])
    spans = [random_concept(like, seed) for seed in (1, 1, 2)]
    assert [span.rank for span in spans] == [3, 3, 3]
    assert torch.equal(spans[0].basis, spans[1].basis)
    assert not torch.equal(spans[0].basis, spans[2].basis)
    assert torch.allclose(spans[2].basis @ spans[2].basis.T, torch.eye(3), atol=1e-6)


def test_components_of_a_change_are_those_of_all_rows_at_once(model: Model) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 40, 6).tolist() for _ in range(30)]
    tuned = model.copy()
    with torch.no_grad():
        for weight in tuned.layout.blocks[0].parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    found = change_components(model, tuned, rows, "resid_post.0", 8, positions=None, batch=7)
    states = [each.capture(rows, "resid_post.0")["resid_post.0"].flatten(0, 1).detach() for each in (model, tuned)]
    exact = PCA(8, svd_solver="full").fit((states[1] - states[0]).double().numpy()).components_
    assert np.abs(np.sum(found.numpy() * exact, axis=1)) == pytest.approx(np.ones(8), abs=1e-4)
    with pytest.raises(UsageError, match="for 20 components"):
        change_components(model, tuned, rows[:4], "resid_post.0", 20)


def drawn(parts: int, rows: int, d: int) -> Iterator[np.ndarray]:
    """Rows whose variance falls off along known axes, around a mean that is not zero."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    for _ in range(parts):
        yield 3.0 + rng.standard_normal((rows, d)) * (10.0 / (1 + np.arange(d)) ** 2) @ axes.T


def test_streamed_components_are_close_and_keep_a_fifth_of_the_rows_at_most() -> None:
    everything = np.concatenate(list(drawn(60, 50, 32)))
    exact = PCA(4, svd_solver="full").fit(everything).components_
    tracemalloc.start()
    found = streamed_components(drawn(60, 50, 32), 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.abs(np.sum(found * exact, axis=1)).min() > 0.999
    assert 5 * peak < everything.nbytes


def test_the_labelled_direction_is_the_difference_of_class_means(rules: TwoRules, task: Task) -> None:
    states = last_states(rules.model, task.probe, SITE)
    labels = np.array([item.labels[1] for item in task.probe])
    wanted = states[labels == 1].mean(0) - states[labels == 0].mean(0)
    assert labelled_direction(rules.model, task.probe, SITE).numpy() == pytest.approx(wanted, abs=1e-5)


def test_selectivity_is_the_difference_of_explained_variances() -> None:
    rng = np.random.default_rng(0)
    states, candidates = rng.standard_normal((50, 6)), rng.standard_normal((4, 6))
    labels = rng.integers(0, 2, (50, 2))
    choices = [Choice((1,), 2, 3, (int(a), int(b))) for a, b in labels]
    along = states @ candidates.T
    by_hand = [
        np.corrcoef(along[:, i], labels[:, 1])[0, 1] ** 2 - np.corrcoef(along[:, i], labels[:, 0])[0, 1] ** 2
        for i in range(4)
    ]
    assert selectivity(states, candidates, choices) == pytest.approx(by_hand)
    assert selectivity(states, np.zeros((1, 6)), choices).tolist() == [0.0]


def test_a_concept_is_chosen_once_and_the_wanted_one_not_at_all(rules: TwoRules, task: Task) -> None:
    told = [labelled_direction(rules.model, task.probe, SITE, rule) for rule in (0, 1)]
    noise = 0.05 * torch.randn(rules.model.d_model, generator=torch.Generator().manual_seed(0))
    found = select(rules.model, torch.stack([told[0], told[1], told[1] + noise]), task.held, SITE)
    assert len(found.places) == 1
    assert found.places[0] in (1, 2)
    assert found.scores[0] < found.scores[1]


def dictionary(rules: TwoRules, task: Task) -> tuple[torch.Tensor, int]:
    """Decoder rows, of which one is the unwanted concept's, and its place."""
    noise = torch.randn(12, rules.model.d_model, generator=torch.Generator().manual_seed(2))
    rows = noise / noise.norm(dim=1, keepdim=True)
    told = labelled_direction(rules.model, task.probe, SITE)
    rows[7] = told / told.norm()
    return rows, 7


def test_latents_are_attributed_by_what_they_do_to_the_margin(rules: TwoRules, task: Task) -> None:
    rows, _ = dictionary(rules, task)
    tuned = tune(rules.model.copy(), choice_data(task.train, 64), TrainConfig(rate=2e-3, batch=32, steps=20)).model
    probe = task.probe[:6]
    found = attributed_latents(tuned, probe, SITE, lambda h: torch.ones(len(h), len(rows)), rows)
    step, slopes = 1e-2, np.zeros((len(probe), len(rows)))
    for latent, row in enumerate(rows):
        sides = []
        for sign in (1.0, -1.0):
            with tuned.edited(Add(SITE, sign * step * row, positions="last")):
                sides.append(margins(tuned, probe))
        slopes[:, latent] = (sides[0] - sides[1]) / (2 * step)
    assert found.numpy() == pytest.approx(np.abs(slopes.mean(0)), rel=0.02, abs=1e-3)


def test_the_planted_latent_and_the_changed_component_are_chosen(rules: TwoRules, task: Task) -> None:
    rows, place = dictionary(rules, task)
    config = TrainConfig(rate=2e-3, batch=32, steps=30, bucket=1, precision="float32")
    tuned = tune(rules.model.copy(), choice_data(task.train, 64), config).model

    def encode(h: torch.Tensor) -> torch.Tensor:
        return (h @ rows.T).relu()

    concepts: list[Concept] = []
    for given in (tuned, None):
        base = rules.model if given is not None else tuned
        chosen = latent_concept(base, task, SITE, encode, rows, tuned=given, at_least=0.6)
        concepts.append(chosen.concept)
        assert set(chosen.controls) == {"random subset", "all candidates"}
    concepts.append(component_concept(rules.model, tuned, task, SITE, k=8).concept)
    for found in concepts:
        assert float((found.basis @ rows[place]).norm()) > 0.8, found
    with pytest.raises(UsageError, match="no candidate"):
        latent_concept(rules.model, task, SITE, encode, rows, tuned=tuned, at_least=2.0)


def test_a_random_subset_is_never_empty_and_comes_from_its_seed() -> None:
    assert random_subset(20, 3) == random_subset(20, 3) != random_subset(20, 4)
    assert all(random_subset(1, seed) == [0] for seed in range(20))
