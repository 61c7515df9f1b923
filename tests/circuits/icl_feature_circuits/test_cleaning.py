import pytest
import torch

from cutaway.circuits.icl_feature_circuits import few_shot, prepare, zero_shot
from cutaway.circuits.icl_feature_circuits.cleaning import (
    clean,
    decoded,
    pursuit,
    random_atoms,
    reconstruction,
    start_of,
)
from cutaway.circuits.icl_feature_circuits.steering import permutation_p, steer
from cutaway.circuits.icl_feature_circuits.task_vectors import Bench, task_vector
from cutaway.errors import UsageError
from cutaway.features import Codes, SparseDictionary
from cutaway.planted.in_context import in_context


@pytest.fixture(scope="module")
def vector(planted, shots):
    return task_vector(planted.model, shots, 2)


@pytest.fixture(scope="module")
def bench(planted, parts):
    return Bench(planted.model, prepare(planted.model, zero_shot(parts.fit)), 2)


@pytest.fixture(scope="module")
def held(planted, parts):
    return Bench(planted.model, prepare(planted.model, zero_shot(parts.held)), 2)


def test_the_task_vector_is_the_mean_over_arrows(planted, shots, vector) -> None:
    stream = planted.model.capture(shots.batch, "resid_pre.2", special=True)["resid_pre.2"]
    rows = [stream[b, t] for b, t in shots.having("arrow").nonzero().tolist()]
    torch.testing.assert_close(vector, torch.stack(rows).mean(0))
    with pytest.raises(UsageError, match="role"):
        task_vector(planted.model, shots, 2, role="colon")


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("shown", [0, 3])
def test_partial_forwards_agree_with_whole_ones(planted, parts, layer: int, shown: int) -> None:
    rows = zero_shot(parts.held) if shown == 0 else few_shot(parts.shots, shown, 5, queries=parts.held)
    bench = Bench(planted.model, prepare(planted.model, rows), layer)
    vector = torch.randn(planted.model.d_model, generator=torch.Generator().manual_seed(layer)) / 4
    for added in (None, vector):
        torch.testing.assert_close(bench.losses(added), bench.losses_from_the_bottom(added), atol=1e-5, rtol=0)
    # And again: what was kept is not used up.
    torch.testing.assert_close(bench.losses(vector), bench.losses_from_the_bottom(vector), atol=1e-5, rtol=0)


def test_partial_forwards_of_rotary_models_with_words_of_several_tokens(tiny_words) -> None:
    model, rows = tiny_words
    bench = Bench(model, prepare(model, rows, n_first=2), 1)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.testing.assert_close(bench.losses(vector), bench.losses_from_the_bottom(vector), atol=1e-5, rtol=0)
    (ours,) = torch.autograd.grad(bench.losses(vector).sum(), vector)
    (whole,) = torch.autograd.grad(bench.losses_from_the_bottom(vector).sum(), vector)
    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", [3])
def test_cleaning_returns_the_planted_atom(seed: int, clean_one) -> None:
    found, planted, task, _ = clean_one(seed)
    assert found.latents == (planted.truth.executors[task],)
    assert found.stopped == "patience"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_cleaning_returns_the_planted_atom_from_ten_seeds(seed: int, clean_one) -> None:
    """Slow: ten models."""
    found, planted, task, _ = clean_one(seed)
    assert found.latents == (planted.truth.executors[task],)


def test_cleaning_finds_nothing_where_there_is_nothing(clean_one) -> None:
    found, _, _, bench = clean_one(1, null=True)
    gain = bench.score().loss.value - bench.score(found.vector).loss.value
    assert gain < 0.02  # decoys may fit the answers of the queries, but not those of others


def test_the_objective_is_kept_and_both_rules_stop(bench, dictionary, vector) -> None:
    found = clean(bench, dictionary, vector, steps=400, patience=40, rate=0.1)
    for moment in found.history:
        assert moment.objective == pytest.approx(moment.loss + 0.05 * moment.l1, abs=1e-4)
    assert found.history[-1].l0 == found.l0
    last = found.history[-41:]
    assert found.stopped == "patience"
    assert min(m.l0 for m in last[1:]) >= min(m.l0 for m in found.history)
    # A fall of the objective alone keeps it going: with the count at its least early, it went on.
    first_least = next(i for i, m in enumerate(found.history) if m.l0 == found.l0)
    assert len(found.history) > first_least + 40
    assert clean(bench, dictionary, vector, steps=7).stopped == "steps"


def test_interrupted_cleaning_is_usable(bench, dictionary, vector) -> None:
    def stop(step: int, _moment: object) -> None:
        if step == 20:
            raise KeyboardInterrupt

    found = clean(bench, dictionary, vector, report=stop)
    assert not found.complete
    assert len(found.history) == 21
    assert found.l0 == found.history[-1].l0
    torch.testing.assert_close(found.vector, reference_decode(dictionary, found))


def reference_decode(dictionary, found):
    weights = torch.zeros(dictionary.n_latents)
    weights[list(found.latents)] = torch.tensor(found.weights)
    return weights @ dictionary.atoms


def test_gated_and_jump_thresholds_are_those_of_the_encoder(vector) -> None:
    generator = torch.Generator().manual_seed(0)
    for kind in ("jumprelu", "gated", "relu", "topk"):
        made = SparseDictionary(len(vector), 50, kind, k=5, seed=1)
        with torch.no_grad():
            for parameter in (made.b_enc, made.r_mag, made.b_mag, made.threshold):
                if parameter is not None:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator).abs())
        theta, threshold = start_of(made, vector)
        torch.testing.assert_close(theta * (theta > threshold), made.encode(vector[None]).dense()[0])
        weights = theta * (theta > threshold)
        torch.testing.assert_close(decoded(made, weights, vector), made(vector[None])[0])


def test_a_dictionary_that_only_encodes_will_do(bench, vector, dictionary) -> None:
    class Plain:
        provenance, n_latents, d_in, atoms = (
            dictionary.provenance,
            dictionary.n_latents,
            dictionary.d_in,
            dictionary.atoms,
        )

        def encode(self, x):
            return dictionary.encode(x)

        def decode(self, codes: Codes, x=None):
            return dictionary.decode(codes, x)

    ours, plain = (clean(bench, each, vector, steps=60) for each in (dictionary, Plain()))
    assert ours.history[0] == plain.history[0]


def test_a_dictionary_of_another_width_is_refused(bench, vector) -> None:
    other = SparseDictionary(len(vector) + 1, 20, "relu")
    for call in (
        lambda: clean(bench, other, vector),
        lambda: reconstruction(other, vector),
        lambda: pursuit(other, vector, 3),
    ):
        with pytest.raises(UsageError, match="dimensions"):
            call()
    with pytest.raises(UsageError, match="penalty"):
        clean(bench, SparseDictionary(len(vector), 20, "relu"), vector, penalty=-1.0)


def test_pursuit_is_exact_on_orthogonal_atoms() -> None:
    made = SparseDictionary(8, 8, "relu", subtract_bias=False)
    with torch.no_grad():
        made.w_dec.copy_(torch.eye(8))
    target = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0, -4.0, 0.0, 0.0])
    found, active = pursuit(made, target, 8)
    assert set(active) == {1, 3, 4}
    torch.testing.assert_close(found, target.clamp(min=0), atol=0.3, rtol=0)
    one, only = pursuit(made, target, 1)
    assert only == (1,)
    torch.testing.assert_close(one, 3.0 * torch.eye(8)[1])


def test_pursuit_equals_its_naive_form(dictionary, vector) -> None:
    atoms, k = dictionary.atoms.double(), 6
    target, weights = vector.double(), torch.zeros(dictionary.n_latents).double()
    chosen: list[int] = []
    for _ in range(k):
        left = target - weights @ atoms
        scores = atoms @ left
        scores[chosen] = -torch.inf
        chosen.append(int(scores.argmax()))
        gradient = torch.zeros_like(weights)
        gradient[chosen] = (atoms @ left)[chosen]
        move = gradient @ atoms
        weights = (weights + (move @ left) / (move @ move) * gradient).clamp(min=0)
    found, active = pursuit(dictionary, vector, k)
    torch.testing.assert_close(found.double(), weights @ atoms, atol=1e-5, rtol=0)
    assert set(active) == set(weights.nonzero()[:, 0].tolist())


def test_random_atoms_are_others_of_the_same_weights(bench, dictionary, vector) -> None:
    found = clean(bench, dictionary, vector, steps=5)
    drawn = random_atoms(dictionary, found, vector, seed=0)
    assert float((drawn - found.vector).norm()) > 0.1


def test_steering_is_diagonal_on_planted_executors(planted, dictionary) -> None:
    from cutaway.circuits.icl_feature_circuits import Task, split

    benches, few = {}, {}
    for k in range(4):
        parts = split(Task(str(k), planted.pairs(k)), 3, queries=4, seed=k)
        benches[str(k)] = Bench(planted.model, prepare(planted.model, zero_shot(parts.held)), 2)
        few[str(k)] = Bench(planted.model, prepare(planted.model, few_shot(parts.shots, 3, 3, seed=k)), 2)
    right = {str(k): planted.truth.executors[k] for k in range(4)}
    found = steer(benches, dictionary, right, scale=1.0, few=few)
    assert found.dominant == 4
    assert found.p == pytest.approx(1 / 24)
    assert found.specificity(1).low > 1
    assert found.damage[2][2].value > 1 > abs(found.damage[2][1].value)
    assert max(each.value for each in found.random) < 0.5
    wrong = steer(benches, dictionary, {str(k): planted.truth.detectors[k] for k in range(4)}, scale=1.0)
    assert wrong.p > 0.05
    with pytest.raises(UsageError, match="scale"):
        steer(benches, dictionary, right, scale=0.0)


def test_permutation_p_counts_assignments() -> None:
    import itertools

    import numpy as np

    values = np.random.default_rng(0).normal(size=(4, 4))
    sums = [sum(values[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4))]
    assert permutation_p(values) == np.mean([s >= np.trace(values) - 1e-12 for s in sums])
    assert permutation_p(np.eye(10)) == pytest.approx(1e-4)


def test_null_model_task_vector_has_no_gain() -> None:
    planted = in_context(3, 11, decoys=4, null=True)
    rows = prepare(planted.model, few_shot(planted.pairs(1)[:6], 3, 4))
    vector = task_vector(planted.model, rows, 2)
    bench = Bench(planted.model, prepare(planted.model, zero_shot(planted.pairs(1)[6:])), 2)
    assert abs(bench.score().loss.value - bench.score(vector).loss.value) < 1e-4
