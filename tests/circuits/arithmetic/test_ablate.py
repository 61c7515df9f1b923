"""Batched ablation against the edits of the house, one node at a time; means are those of each layer."""

import numpy as np
import pytest
from small import permuted_heads, stored, varied

from cutaway.circuits.arithmetic import Format, score, uniform
from cutaway.circuits.arithmetic.ablate import ablate, bootstrap_means
from cutaway.circuits.arithmetic.nodes import Node, all_nodes, answers_with, record, residuals, whole_heads
from cutaway.errors import UsageError
from cutaway.model import Replace
from cutaway.planted.adder import adder


@pytest.mark.parametrize("how", ["mean", "zero"])
@pytest.mark.parametrize("name", ["one-layer", "two-layer"])
def test_the_sweep_equals_one_edit_at_a_time(name: str, how: str) -> None:
    model, form = stored(name).model, stored(name).recipe.format
    questions, reference = uniform(form, 32, 1), uniform(form, 64, 2)
    nodes = (*all_nodes(model, form, [0, 8, 12, 14]), *whole_heads(model), *residuals(form)[11:14])
    found = ablate(model, questions, nodes, reference, how=how)
    source = record(model, reference).mean() if how == "mean" else record(model, reference).zero()
    for at, node in enumerate(nodes):
        if node.layer is None:
            layers = range(model.n_layers)
            edits = [Replace(f"resid_post.{i}", source.post[i][0, node.position], node.position) for i in layers]
        else:
            site = f"mlp_out.{node.layer}" if node.head is None else f"z.{node.layer}.{node.head}"
            edits = [Replace(site, source.value(node)[0], node.position)]
        with model.edited(*edits):
            slow = score(model, questions)
        np.testing.assert_allclose(found.loss[at], slow.loss, atol=2e-4, rtol=1e-4, err_msg=str(node))
        assert (found.wrong[at] != slow.wrong).mean() < 0.01


def test_each_layer_has_its_own_means() -> None:
    """Reusing layer 0's means in layer 1, the published defect, gives other numbers than ours."""
    model, form = stored("two-layer").model, stored("two-layer").recipe.format
    questions, means = uniform(form, 64, 1), record(stored("two-layer").model, uniform(form, 64, 2)).mean()
    node = Node(13, 1, 0)
    right = ablate(model, questions, [node], means).loss[0]
    with model.edited(Replace("z.1.0", means.z[1][0, 13, 0], 13)):
        np.testing.assert_allclose(right, score(model, questions).loss, atol=2e-4, rtol=1e-4)
    wrong_source = answers_with(model, form, record(model, questions), [(node,)], lambda _: means.z[0][:, 13, 0])
    assert np.abs(wrong_source.loss[0] - right).max() > 0.01


def test_question_positions_matter_in_no_one_layer_model() -> None:
    model, form = stored("one-layer").model, stored("one-layer").recipe.format
    found = ablate(model, varied(form, 60, 1), residuals(form), varied(form, 60, 2))
    assert not found.broken[: form.equals].any()
    worst = [int(found.broken_tokens[:, form.column(i)].argmax()) for i in range(6)]
    assert worst == [form.predicts(i) for i in range(6)]
    assert set(map(str, found.useful())) == {f"P{p}" for p in form.predicting}


def test_permuting_heads_permutes_the_map_and_nothing_else() -> None:
    model, form = stored("one-layer").model, stored("one-layer").recipe.format
    questions, reference, order = varied(form, 30, 1), varied(form, 30, 2), [2, 0, 1]
    nodes = all_nodes(model, form, [13, 14])
    one = ablate(model, questions, nodes, reference)
    two = ablate(permuted_heads(model, 0, order), questions, nodes, reference)
    for place, node in enumerate(nodes):
        old = node if node.head is None else Node(node.position, node.layer, order[node.head])
        np.testing.assert_allclose(two.loss[place], one.loss[nodes.index(old)], atol=1e-4)


def test_intervals_cover_and_match_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(loc=[0.0, 1.0, 2.0], size=(200, 3))
    low, high = bootstrap_means(values, draws=2000)
    naive = np.array([values[rng.integers(0, 200, 200)].mean(axis=0) for _ in range(2000)])
    np.testing.assert_allclose([low, high], np.quantile(naive, [0.025, 0.975], axis=0), atol=0.03)


def test_one_failed_question_makes_no_node_useful() -> None:
    planted = adder(3, columns=4).model
    form = Format(3)
    found = ablate(planted, varied(form, 100, 0), all_nodes(planted, form), varied(form, 50, 9))
    lucky = np.zeros_like(found.wrong)
    lucky[0, 0, 0] = True
    once = type(found)(**{**vars(found), "wrong": lucky, "clean_wrong": np.zeros_like(found.clean_wrong)})
    assert once.broken.sum() == 1
    assert once.useful() == ()


def test_tables_and_charts() -> None:
    model, form = stored("one-layer").model, stored("one-layer").recipe.format
    found = ablate(model, varied(form, 30, 1), all_nodes(model, form), varied(form, 30, 2))
    frame = found.to_frame()
    assert len(frame) == len(found.nodes)
    assert (frame.rise_low <= frame.rise).all()
    assert found.heat("map").columns == ("L0H0", "L0H1", "L0H2", "L0MLP")
    assert found.to_dict()["questions_sha256"] == found.questions.digest
    assert found.class_rise("S1").n == 30
    assert repr(found).startswith("AblationMap(68 nodes, worst P")


def test_bad_input() -> None:
    model, form = stored("one-layer").model, stored("one-layer").recipe.format
    few, many = uniform(form, 20, 0), uniform(form, 40, 0)
    with pytest.warns(UserWarning, match="20 questions"):
        ablate(model, few, [Node(12, 0, 0)], many)
    found = ablate(model, many, [Node(12, 0, 0)], many)
    with pytest.raises(UsageError, match="at least 30"):
        found.class_rise("S3")
    with pytest.raises(UsageError, match="head 5; 0 to 2"):
        ablate(model, many, [Node(12, 0, 5)], many)
    with pytest.raises(UsageError, match="no node"):
        ablate(model, many, [], many)
    with pytest.raises(UsageError, match="a head needs its layer"):
        Node(3, None, 1)
    with pytest.raises(UsageError, match="sees 18 tokens"):
        ablate(model, uniform(Format(8), 40, 0), [Node(12, 0, 0)], many)
