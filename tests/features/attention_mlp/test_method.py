"""Congruence, exact shares, shortest suffixes, planted circuits, the clustered test, bad input."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features.attention_mlp import (
    NextToken,
    ablate,
    active,
    attribute,
    balanced_accuracy,
    compare,
    congruence,
    contextual,
    decide,
    reader,
    shorten,
    word_like,
)
from cutaway.features.attention_mlp.calibration import level, planted, uniform_p
from cutaway.features.attention_mlp.report import correlation, scores
from cutaway.features.attention_mlp.study import AttentionMlp, AttentionMlpConfig
from cutaway.features.attention_mlp.surveys import firing_prompts, survey
from cutaway.features.unit import function
from cutaway.model import Mask, Model
from cutaway.planted.rules import WORDS, context_neuron
from cutaway.study import Lab

PROMPTS = ([40, 41, 42, 43, 44], [50, 51], [40, 41], [60, 61, 62], [33])


def test_congruence_is_a_dense_product(any_model: Model) -> None:
    """By numpy, from the modules' own weights."""
    hf, layer = any_model.hf, 1
    norms = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
    norm = hf.get_submodule(norms[any_model.layout.shape.name])
    down = any_model.layout.blocks[layer].get_submodule("mlp").get_submodule(any_model.layout.shape.down)
    w_out = down.weight.detach().double().numpy()
    w_out = w_out if type(down).__name__ == "Conv1D" else w_out.T
    w_u = hf.get_output_embeddings().weight.detach().double().numpy() * norm.weight.detach().double().numpy()
    allowed = torch.zeros(any_model.vocab_size, dtype=torch.bool)
    allowed[[10, 20, 30, 40]] = True
    w_u = w_u[allowed.numpy()] - w_u[allowed.numpy()].mean(0)
    if isinstance(norm, torch.nn.LayerNorm):
        w_out = w_out - w_out.mean(1, keepdims=True)
    table = w_out @ w_u.T
    found = congruence(any_model, layer, allowed=allowed)
    assert len(found) == 2 * len(table)
    for each in found:
        row = each.sign * table[each.neuron]
        assert each.congruence == pytest.approx(row.max(), abs=1e-5)
        assert each.token == [10, 20, 30, 40][int(row.argmax())]
    assert [each.congruence for each in found] == sorted((each.congruence for each in found), reverse=True)


def test_tokens_that_count_are_words_and_never_special(model: Model) -> None:
    allowed = word_like(model)
    assert {model.decode([int(i)]) for i in allowed.nonzero()[:, 0]} == {" the"}
    assert not allowed[sorted(model.special_ids)].any()
    with pytest.raises(UsageError, match="0 tokens"):
        congruence(model, 0, allowed=torch.zeros(model.vocab_size, dtype=torch.bool))


def test_all_shares_add_up_to_the_pre_activation(any_model: Model) -> None:
    for module in any_model.hf.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.weight, 1.0, 0.3)
        elif getattr(module, "bias", None) is not None:
            torch.nn.init.normal_(module.bias, std=0.3)
    places = [(0, 3), (1, 5), (2, 7)]
    found = attribute(any_model, places, [PROMPTS] * 3, tokens=7)
    for (layer, neuron), each in zip(places, found, strict=True):
        for row, prompt in enumerate(PROMPTS):
            true = any_model.capture([prompt], f"neurons.{layer}", special=True)[f"neurons.{layer}"][0, -1, neuron]
            assert float(each.value[row]) == pytest.approx(float(true.detach()), abs=1e-4)
        assert torch.allclose(each.total(), each.pre, atol=1e-4)
        assert each.head_pre.abs().sum() > 0 or reader(any_model, layer).parallel
    assert found[0].rest_pre["mlps"].eq(0).all()


def test_a_parallel_block_is_reached_by_earlier_heads_alone(any_model: Model) -> None:
    (each,) = attribute(any_model, [(1, 5)], [PROMPTS])
    parallel = reader(any_model, 1).parallel
    assert parallel == (any_model.layout.shape.name == "gpt_neox")
    assert bool(each.heads[:, 1].eq(0).all()) == parallel
    assert each.heads[:, 0].ne(0).any()


def test_first_order_is_the_derivative_and_ablation_the_difference(model: Model) -> None:
    layer, neuron = 2, 4
    (each,) = attribute(model, [(layer, neuron)], [[PROMPTS[0]]])
    read = reader(model, layer)
    x = model.capture([PROMPTS[0]], f"resid_mid.{layer}", special=True)[f"resid_mid.{layer}"][0, -1].detach()
    scale = read.norm.scale(x)

    def frozen(x: torch.Tensor) -> torch.Tensor:
        return read.value(x @ read.directions[:, neuron].T * scale + read.constants[:, neuron])

    z = model.capture([PROMPTS[0]], "z.1", special=True)["z.1"][0, -1].detach()
    o = model.layout.attn(1).get_submodule("o_proj").weight.detach()
    for head in range(2):
        out = o[:, head * 8 : (head + 1) * 8] @ z[head]
        slope = torch.autograd.functional.jvp(frozen, x, out)[1]
        assert float(each.heads[0, 1, head]) == pytest.approx(float(slope), abs=1e-5)
        lost = read.value(read.pre(x, neuron)) - read.value(read.pre(x - out, neuron))
        assert float(each.without[0, 1, head]) == pytest.approx(float(lost), abs=1e-5)


def test_activity_is_two_sd_above_a_prompts_heads(model: Model) -> None:
    (each,) = attribute(model, [(2, 4)], [PROMPTS])
    found = active(each)
    for row in range(len(PROMPTS)):
        flat = each.heads[row].flatten().numpy()
        assert found[row].flatten().tolist() == (flat > flat.mean() + 2 * flat.std()).tolist()
    assert active(each, "top3").flatten(1).sum(-1).tolist() == [3] * 5
    share = torch.zeros(8, 1, 3, dtype=torch.bool)
    share[:2, 0, 0], share[:6, 0, 1], share[:7, 0, 2] = True, True, True
    assert contextual(share) == [(0, 0), (0, 1)]


def exhaustive(values: Sequence[float], keep: float) -> int:
    """Shortest suffix length whose value is enough; ``values[n - 1]`` is that of the last n tokens."""
    return next(n for n, value in enumerate(values, 1) if value >= keep * values[-1])


def test_shortest_suffixes_equal_exhaustive_search_where_longer_is_stronger() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        length = int(rng.integers(1, 40))
        values = np.sort(rng.random(length) + 0.01).tolist()
        unit = function("grows", lambda ids, values=values: [values[i] for i in range(len(ids))])  # type: ignore[misc]
        (found,) = shorten(unit, [list(range(length))])
        assert len(found) == exhaustive(values, 0.8)
        assert found == tuple(range(length))[length - len(found) :]


def test_shortened_prompts_keep_enough_also_where_the_value_jumps() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        values = (rng.random(30) + 0.01).tolist()
        unit = function("jumps", lambda ids, values=values: [values[len(ids) - 1]] * len(ids))  # type: ignore[misc]
        (found,) = shorten(unit, [list(range(30))], keep=0.8)
        assert values[len(found) - 1] >= 0.8 * values[29]
    assert shorten(function("one", lambda ids: [1.0] * len(ids)), [[5]]) == [(5,)]
    with pytest.raises(UsageError, match="does not fire"):
        shorten(function("off", lambda ids: [-1.0] * len(ids)), [[5, 6]])


@pytest.mark.parametrize("seed", [0, 3, pytest.param(range(10), marks=pytest.mark.slow)])  # all ten of the card
def test_the_planted_circuit_comes_back_in_full(seed: int | range) -> None:
    for each in [seed] if isinstance(seed, int) else seed:
        model = context_neuron(each)
        truth, got = model.truth, planted(model, each, rows=40)
        assert (got.target.neuron, got.target.token) == (truth.neuron, truth.token)
        assert {(head.layer, head.head) for head in got.found.heads} == {place[:2] for place in truth.heads}
        for head in got.found.heads:
            word = {place[:2]: place[2] for place in truth.heads}[head.layer, head.head]
            assert (head.decision.tokens, head.decision.how, head.score) == ((word,), "contains", 1.0)
            assert head.drop_active > 0.02
            assert abs(head.drop_inactive) < 1e-3
            assert abs(head.random_active) < 0.1 * head.drop_active
    assert planted(context_neuron(1, null=True), 1, rows=40).found.heads == ()


def test_ablating_a_head_is_masking_it_in_the_model(model: Model) -> None:
    rows = [[40, 41, 42], [50, 51, 52, 53]]
    drops = ablate(model, (1, 1), rows, 44)
    for i, row in enumerate(rows):
        before = model.logits(model.batch([row]))[0, -1].softmax(-1)[44]
        with model.edited(Mask("z.1", index=1)):
            after = model.logits(model.batch([row]))[0, -1].softmax(-1)[44]
        assert float(drops.probability[i]) == pytest.approx(float((before - after).detach()), abs=1e-6)
        assert float(drops.log[i]) == pytest.approx(float((before.log() - after.log()).detach()), abs=1e-5)


def test_the_distance_is_scipys_and_clusters_do_not_inflate_it() -> None:
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.5, size=40)
    found = compare(a.tolist(), b.tolist(), list(range(40)), n=500)
    assert found.d == pytest.approx(ks_2samp(a, b).statistic)
    assert (found.n, found.clusters) == (40, 40)
    assert compare((a + 3).tolist(), b.tolist(), list(range(40)), n=500).p < 0.01
    p_values: list[float] = []
    below, sims = level(200, p_values=p_values)
    assert below / sims < 0.1
    assert uniform_p(p_values) > 0.01
    # The naive test takes every pair for a draw of its own.
    same = [compare([0.1] * 4, [0.2] * 4, [0] * 4, n=100).p for _ in range(2)]
    assert same == [1.0, 1.0]


def test_rules_are_words_scored_on_other_prompts() -> None:
    prompts = [[1, 2, 3], [1, 4], [5, 3], [4, 5], [1, 5], [3, 4]]
    one = decide(prompts, [True, True, False, False, True, False])
    assert (one.tokens, one.how, one.fitted) == ((1,), "contains", 1.0)
    mixed = [[1, 2], [1, 9], [2, 9], [9, 8], [1, 2, 9], [1, 8], [2, 8]]
    both = decide(mixed, [{1, 2} <= set(prompt) for prompt in mixed])
    assert set(both.tokens) == {1, 2}
    assert both.how == "both"
    assert balanced_accuracy(one, [[1], [2], [1, 3], [4]], [True, False, False, False]) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert math.isnan(balanced_accuracy(one, [[1], [2]], [True, True]))
    with pytest.raises(UsageError, match="both kinds are needed"):
        decide([[1], [2]], [True, True])


def test_controls_stand_in_the_same_table() -> None:
    model = context_neuron(0)
    found = [planted(model, seed, rows=40).found for seed in (0, 1)]
    items = {item.name: item for item in scores(found, found)}
    assert items["rule score"].value == 1.0
    assert items["rule score"].control is not None
    assert items["rule score, minus random neurons"].value == 0.0
    shuffled = items["rule score, shuffled rules"].value
    assert shuffled is not None
    assert items["rule score, minus shuffled rules"].value == pytest.approx(1 - shuffled)
    assert items["heads of one class on other documents, not scored"].value == 0
    assert correlation(found).value is not None


def test_a_neuron_that_never_fires_is_said_to(model: Model) -> None:
    target = NextToken(1, 3, 1, 40, 1.0)
    model.layout.blocks[1].mlp.up_proj.weight.data[3] = 0.0  # type: ignore[union-attr,index]
    prompts = firing_prompts(model, [target], [(40, 41, 42)] * 6)
    (found,), complete = survey(model, [target], prompts, prompts)
    assert complete
    assert found.undefined.startswith("fires in fewer than four")


def test_bad_input(model: Model, any_model: Model) -> None:
    for make, message in (
        (lambda: reader(model, 3), "layer 3: reader-0 has 0..2"),
        (lambda: attribute(model, [(0, 99)], [[[40]]]), "neuron 99: layer 0 has 0..31"),
        (lambda: attribute(model, [(0, 1)], [[]]), "at least one prompt"),
        (lambda: attribute(model, [(0, 1)], [[[]]]), "a token in every prompt"),
        (lambda: compare([1.0], [1.0, 2.0], [0]), "one of each a pair"),
    ):
        with pytest.raises(UsageError, match=message):
            make()  # type: ignore[no-untyped-call]
    block = any_model.layout.blocks[1]
    block.mlp = torch.nn.Identity()
    with pytest.raises(UsageError, match="no plain or gated MLP"):
        reader(any_model, 1)


def test_the_study_runs_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = context_neuron(0)
    path = tmp_path / "text.jsonl"
    texts = ["".join(f" {WORDS[t - 3]}" for t in row) for row in each.texts(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lab = Lab(tmp_path)
    monkeypatch.setattr(lab, "model", lambda *_: each.model)
    config = AttentionMlpConfig(
        corpus=str(path), layers=(1,), per_layer=2, windows=20, length=24, prompts=20, start="none"
    )
    findings = AttentionMlp().run(config, lab)
    items = {item.name: item for item in findings.items}
    assert findings.complete
    for name in ("rule score", "heads active in context"):
        assert items[name].control is not None
    assert {"lookups.jsonl", "graph.json"} <= set(findings.artifacts)
    lines = [json.loads(line) for line in findings.artifacts["lookups.jsonl"].decode().splitlines()]
    first = next(line for line in lines if line["neuron"] == each.truth.neuron)
    assert first["writes"] == f" {WORDS[each.truth.token - 3]}"
    assert {(head["layer"], head["head"]) for head in first["heads"]} == {place[:2] for place in each.truth.heads}
    with pytest.raises(UsageError, match="start='bos'"):
        AttentionMlp().run(AttentionMlpConfig(corpus=str(path), layers=(1,)), lab)
