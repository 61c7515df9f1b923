"""Oracles: finite differences, plain autograd through Hugging Face's own modules, naive loops."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.circuits.icl_feature_circuits import few_shot, prepare
from cutaway.circuits.icl_feature_circuits.circuit import (
    Ablator,
    Bounds,
    _random,
    curve,
    nodes_of,
    select,
    thresholds,
    verify,
)
from cutaway.circuits.icl_feature_circuits.feature_graph import (
    Node,
    edge_effects,
    metric,
    node_effects,
    observe,
    places,
    sublayer_gradient,
)
from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.features.dictionary import Provenance
from cutaway.model import Add, Model
from cutaway.planted.build import word_tokenizer

SITES = ("resid_pre.0", "attn_out.0", "mlp_out.0", "resid_pre.1")
PAIRS = tuple((f"a{i}", f"b{i}") for i in range(6))


@pytest.fixture(scope="module")
def model() -> Model:
    words = [f"{c}{i}" for c in "ab" for i in range(6)]
    tokenizer = word_tokenizer(("Follow", " the", " pattern", ":", " ->", *words, *(f" {w}" for w in words)))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = LlamaForCausalLM(config).eval().requires_grad_(False).double()
    for name, parameter in hf.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(12.0)
    return Model(hf, tokenizer, "two-layers")


@pytest.fixture(scope="module")
def prompts(model):
    rows = few_shot(PAIRS, 3, 2, seed=0) + few_shot(PAIRS, 2, 1, seed=1)
    return prepare(model, rows)


def random_dictionary(seed: int, kind: str = "topk", **kwargs) -> SparseDictionary:
    made = SparseDictionary(16, 40, kind, k=6, seed=seed, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.b_dec.copy_(0.1 * torch.randn(16, generator=generator))
    return made.double().requires_grad_(False)


@pytest.fixture(scope="module")
def at(model):
    return places(model, {site: random_dictionary(i) for i, site in enumerate(SITES)})


@pytest.fixture(scope="module")
def effects(model, prompts, at):
    return node_effects(model, prompts, at)


def test_effects_are_finite_differences_of_scaling_a_feature(model, prompts, at, effects) -> None:
    seen, _ = observe(model, prompts, at)
    step = 1e-4
    for place in at:
        found, here = effects[place.site], seen[place.site]
        dense = here.codes.dense().view(*prompts.role.shape, -1)
        for role, latent, value in [*found.top(3), ("arrow", *_strongest(found, "arrow"))]:
            where = prompts.having(role)[..., None]
            change = dense[..., [latent]] * place.dictionary.atoms[latent] * where
            slope = _slope(model, prompts, place.site, change, step)
            assert value == pytest.approx(slope, rel=1e-2, abs=1e-7)
        rebuilt = place.dictionary(here.read.flatten(0, 1)).view_as(here.x)
        change = (here.x - rebuilt) * prompts.having("arrow")[..., None]
        slope = _slope(model, prompts, place.site, change, step)
        assert float(found.error.mean(0)[found.roles.index("arrow")]) == pytest.approx(slope, rel=1e-2, abs=1e-7)


def _strongest(found, role: str) -> tuple[int, float]:
    row = found.mean[found.roles.index(role)]
    latent = int(row.abs().argmax())
    return latent, float(row[latent])


def _slope(model, prompts, site: str, change, step: float) -> float:
    values = []
    for sign in (1.0, -1.0):
        with model.edited(Add(site, change, scale=sign * step)):
            values.append(float(metric(model, prompts).mean()))
    return (values[0] - values[1]) / (2 * step)


def test_features_error_and_rest_add_up_to_gradient_times_value(effects, model, prompts, at) -> None:
    seen, _ = observe(model, prompts, at)
    for site, found in effects.items():
        whole = found.features.sum(-1) + found.error + found.rest
        torch.testing.assert_close(whole, found.total, atol=1e-9, rtol=1e-6)
        direct = (seen[site].gradient * seen[site].x).sum(-1)
        for role, name in enumerate(found.roles):
            torch.testing.assert_close(found.total[:, role], (direct * prompts.having(name)).sum(-1))
        rebuilt = (
            at[SITES.index(site)].dictionary(seen[site].read.flatten(0, 1)).view_as(direct[..., None] * seen[site].x)
        )
        error = (seen[site].gradient * (seen[site].x - rebuilt)).sum(-1)
        role = found.roles.index("output")
        torch.testing.assert_close(found.error[:, role], (error * prompts.having("output")).sum(-1))


def test_integrated_effects_add_up_to_what_removing_all_features_costs(model, prompts, at) -> None:
    place = at[2]
    found = node_effects(model, prompts, [place], steps=48)[place.site]
    seen, full = observe(model, prompts, [place])
    here = seen[place.site]
    features = (here.codes.dense() @ place.dictionary.atoms).view_as(here.x) * (prompts.role >= 0)[..., None]
    with model.edited(Add(place.site, -features)):
        without = metric(model, prompts)
    torch.testing.assert_close(found.features.sum((1, 2)), full - without, atol=1e-2, rtol=1e-2)


def test_edges_equal_two_step_autograd(model, prompts, at) -> None:
    seen, _ = observe(model, prompts, at)
    by_site = {place.site: place for place in at}
    block = model.hf.model.layers[0]
    ids, mask = prompts.batch.ids, prompts.batch.mask
    position = torch.arange(ids.shape[1])[None]
    rotary = model.hf.model.rotary_emb(seen["resid_pre.0"].x, position)
    causal = torch.full((ids.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)[None, None]
    causal = causal + torch.where(mask, 0.0, -torch.inf).double()[:, None, None]

    def attention(x):
        return block.self_attn(block.input_layernorm(x), position_embeddings=rotary, attention_mask=causal)[0]

    x0, a0 = seen["resid_pre.0"].x, seen["attn_out.0"].x
    torch.testing.assert_close(attention(x0)[mask], a0[mask])
    cases = [
        ("resid_pre.0", "attn_out.0", attention),
        ("resid_pre.0", "mlp_out.0", lambda x: block.mlp(block.post_attention_layernorm(x + a0))),
        ("attn_out.0", "mlp_out.0", lambda x: block.mlp(block.post_attention_layernorm(x0 + x))),
        ("resid_pre.0", "resid_pre.1", lambda x: x - x.detach() + seen["resid_pre.1"].x),
        ("mlp_out.0", "resid_pre.1", lambda x: x - x.detach() + seen["resid_pre.1"].x),
    ]
    for up, down, through in cases:
        place, role = by_site[down], "arrow" if down != "resid_pre.1" else "output"
        latent = node_effects(model, prompts, [place])[down].top(1, role)[0][1]
        leaf = seen[up].x.clone().requires_grad_()
        value = place.dictionary.dense(through(leaf).flatten(0, 1))[:, latent]
        worth = seen[down].gradient.flatten(0, 1) @ place.dictionary.atoms[latent]
        (expected,) = torch.autograd.grad((value * worth * prompts.having(role).flatten()).sum(), leaf)
        node = Node(down, role, latent)
        ours = sublayer_gradient(model, prompts, by_site[up], place, node, seen)
        torch.testing.assert_close(ours[mask], expected[mask], atol=1e-8, rtol=1e-5)
        edges = [edge for edge in edge_effects(model, prompts, at, [node], keep=10_000) if edge.upstream.site == up]
        dense = seen[up].codes.dense().view(*ids.shape, -1)
        parts = torch.einsum("btd,ld,btl->btl", expected, by_site[up].dictionary.atoms, dense)
        for edge in edges[:6]:
            if edge.upstream.latent >= 0:
                inside = prompts.having(edge.upstream.role)
                wanted = float(parts[..., edge.upstream.latent][inside].sum() / len(prompts))
                assert edge.effect == pytest.approx(wanted, rel=1e-5, abs=1e-10)


def test_edges_cross_one_sublayer_only(model, prompts, at) -> None:
    node = Node("resid_pre.1", "arrow", 3)
    sites = {edge.upstream.site for edge in edge_effects(model, prompts, at, [node], keep=10_000)}
    assert sites <= {"resid_pre.0", "attn_out.0", "mlp_out.0"}
    into_first = edge_effects(model, prompts, at, [Node("resid_pre.0", "arrow", 3)])
    assert into_first == []
    with pytest.raises(UsageError, match="no place"):
        edge_effects(model, prompts, at, [Node("mlp_out.1", "arrow", 3)])


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_ablating_nothing_is_the_model(model, prompts, at, baseline: str) -> None:
    ablator = Ablator(model, prompts, at, baseline)
    full = ablator.run(ablator.all_kept(True))
    torch.testing.assert_close(torch.tensor(full), metric(model, prompts), atol=1e-4, rtol=0)
    plain = model.logits(prompts.batch)
    with ablator._ablated(ablator.all_kept(True)):
        torch.testing.assert_close(model.logits(prompts.batch), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(prompts.batch), plain, atol=0, rtol=0)


def test_ablation_equals_a_naive_loop(model, prompts, at) -> None:
    """One place, zero baseline: token by token, decode only what is kept and add the error."""
    place = at[3]
    generator = torch.Generator().manual_seed(2)
    kept = {place.site: torch.rand(len(prompts.roles), 40, generator=generator) < 0.5}
    x = model.capture(prompts.batch, place.site, special=True)[place.site].clone()
    for row in range(len(prompts)):
        for token in range(x.shape[1]):
            role = int(prompts.role[row, token])
            if role >= 0:
                value = x[row, token]
                dense = place.dictionary.dense(value[None])[0]
                error = value - (dense @ place.dictionary.atoms + place.dictionary.b_dec)
                x[row, token] = (
                    (dense * kept[place.site][role]) @ place.dictionary.atoms + place.dictionary.b_dec + error
                )
    with model.started(1, x):
        expected = metric(model, prompts)
    found = Ablator(model, prompts, [place]).run(kept)
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-9, rtol=0)


def test_transcoders_read_one_site_and_write_another(model, prompts) -> None:
    about = Provenance(site="resid_mid.0", target="mlp_out.0")
    transcoder = random_dictionary(7, "relu", subtract_bias=False, skip=True, provenance=about)
    with torch.no_grad():
        transcoder.w_skip.copy_(0.1 * torch.eye(16))
    at = places(model, {"mlp_out.0": transcoder, "resid_pre.0": random_dictionary(1)})
    assert at[1].reads == "resid_mid.0"
    found = node_effects(model, prompts, at)["mlp_out.0"]
    torch.testing.assert_close(found.features.sum(-1) + found.error + found.rest, found.total, atol=1e-9, rtol=1e-6)
    ablator = Ablator(model, prompts, at)
    torch.testing.assert_close(torch.tensor(ablator.run(ablator.all_kept(True))), metric(model, prompts))
    edges = edge_effects(model, prompts, at, [Node("mlp_out.0", *found.top(1)[0][:2])], keep=5)
    assert {edge.upstream.site for edge in edges} == {"resid_pre.0"}


def test_curves_run_from_nothing_to_everything(planted, parts, shots, dictionary) -> None:
    truth = planted.truth
    narrow = SparseDictionary(planted.model.d_model, planted.model.d_model, "jumprelu", subtract_bias=False)
    with torch.no_grad():
        narrow.threshold.fill_(0.02)
        narrow.w_enc.copy_(planted.atoms[: planted.model.d_model])
        narrow.w_dec.copy_(planted.atoms[: planted.model.d_model])
    at = places(planted.model, dict.fromkeys((truth.detect_at, truth.carry_at, truth.execute_at), narrow))
    found = node_effects(planted.model, shots, at)
    other = prepare(planted.model, few_shot(parts.shots, 4, 6, seed=9))
    drawn = curve(planted.model, other, at, found, levels=12, controls=2)
    assert drawn.full.value > drawn.empty.value + 1
    assert drawn.points[-1].faithfulness.value == pytest.approx(1.0, abs=1e-6)
    assert drawn.points[0].faithfulness.value < 0.5
    assert drawn.circuit is not None
    gaps = [point.faithfulness.value - point.random.value for point in drawn.points]
    assert max(gaps) > 0.3, gaps
    bounds = Ablator(planted.model, other, at).bounds()
    assert bounds.share(bounds.full).value == 1.0
    assert bounds.share(bounds.empty).value == 0.0
    # Without the executor's line alone the task is gone.
    ablator = Ablator(planted.model, other, at)
    kept = ablator.all_kept(True)
    kept[truth.execute_at][other.roles.index("arrow"), truth.executors[2]] = False
    assert bounds.share(ablator.run(kept)).value < 0.6
    chosen = select(found, thresholds(found, 3)[1])
    assert len(nodes_of(chosen, shots.roles)) == sum(int(mask.sum()) for mask in chosen.values())


def test_interrupted_curves_keep_their_points(planted, shots, dictionary) -> None:
    at = places(planted.model, {planted.truth.execute_at: dictionary})
    found = node_effects(planted.model, shots, at)

    def stop(done: int, _planned: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    drawn = curve(planted.model, shots, at, found, levels=4, controls=2, report=stop)
    assert not drawn.complete
    assert len(drawn.points) == 1


def test_random_controls_are_equal_in_number_by_place_and_role(effects) -> None:
    import numpy as np

    kept = select(effects, thresholds(effects, 4)[2])
    drawn = _random(kept, effects, np.random.default_rng(0))
    for site, mask in kept.items():
        assert drawn[site].sum(-1).tolist() == mask.sum(-1).tolist()
        assert not bool((drawn[site] & ~(effects[site].features != 0).any(0)).any())


def test_an_ablation_that_costs_nothing_has_no_faithfulness() -> None:
    import numpy as np

    with pytest.raises(UsageError, match="needs a fall"):
        Bounds(np.array([1.0, 2.0]), np.array([1.0, 3.0])).share(np.array([1.0, 2.0]))
    bounds = Bounds(np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.0, 1.0]))
    share = bounds.share(np.array([0.5, 1.5, 2.0]))
    assert share.value == pytest.approx((4 / 3 - 1 / 3) / 2)
    assert share.low < share.value < share.high


def test_checks_are_exact_removals(model, prompts, at, effects) -> None:
    for check in verify(model, prompts, at, effects, top=3):
        place = next(place for place in at if place.site == check.node.site)
        seen, full = observe(model, prompts, [place])
        dense = seen[place.site].codes.dense().view(*prompts.role.shape, -1)[..., [check.node.latent]]
        change = -dense * place.dictionary.atoms[check.node.latent] * prompts.having(check.node.role)[..., None]
        with model.edited(Add(place.site, change)):
            expected = float((full - metric(model, prompts)).mean())
        assert check.exact.value == pytest.approx(expected, abs=1e-9)


def test_misfits_are_named(model, prompts) -> None:
    with pytest.raises(UsageError, match="dimensions"):
        places(model, {"resid_pre.0": SparseDictionary(17, 20, "relu")})
    with pytest.raises(UsageError, match="resid_mid"):
        places(model, {"resid_mid.0": random_dictionary(0)})
    with pytest.raises(UsageError, match="not a sum of atoms"):
        node_effects(model, prompts, places(model, {"resid_pre.1": random_dictionary(0, normaliser="layer_norm")}))
    with pytest.raises(UsageError, match="baseline"):
        Ablator(model, prompts, (), "resample")


def test_standard_errors_are_over_prompts(effects) -> None:
    found = effects["resid_pre.1"]
    n = len(found.features)
    torch.testing.assert_close(found.error_of_mean, found.features.std(0) / n**0.5)
