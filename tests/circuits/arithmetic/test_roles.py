"""Sub-tasks found by interchange: exactly the planted ones, alone or in pairs, and nothing on noise."""

import numpy as np
import pytest
from small import permuted_heads, stored, varied

from cutaway.circuits.arithmetic import Format
from cutaway.circuits.arithmetic.ablate import ablate
from cutaway.circuits.arithmetic.geometry import tricase
from cutaway.circuits.arithmetic.interchange import Task, draw_pairs, patch
from cutaway.circuits.arithmetic.nodes import Node, all_nodes
from cutaway.circuits.arithmetic.planted_check import found_roles, planted_roles
from cutaway.circuits.arithmetic.roles import attended, find_roles, holm, mean_attention, tasks
from cutaway.errors import UsageError
from cutaway.planted.adder import adder

FORM = Format(5, signed=True)
EVERY = (*tasks(FORM, ("ADD", "SUB", "NEG")), *tasks(FORM, ("ADD",), mlps=True))


@pytest.mark.parametrize("background", ["other", "same"])
def test_pairs_are_what_the_task_says(background: str) -> None:
    """The expected answer against Python's integers, task by task."""
    for task in EVERY:
        pairs = draw_pairs(FORM, task, 20, 7, background)
        assert (pairs.expected != pairs.clean.answer_tokens).any(axis=1).all()
        kind = np.where(pairs.clean.negative, "NEG", np.where(pairs.clean.minus, "SUB", "ADD"))
        assert set(kind) == {task.kind}
        if background == "same":
            others = [i for i in range(5) if i != task.column]
            np.testing.assert_array_equal(pairs.clean.first[:, others], pairs.store.first[:, others])
        if task.variable in ("two", "three"):
            size = 10 ** (task.column + 1)
            values = [
                (_value(row), _value(row2)) for row, row2 in zip(pairs.expected, pairs.clean.answer_tokens, strict=True)
            ]
            if task.digit is None:
                assert {abs(a - b) for a, b in values} == {size}
            else:
                place = FORM.column(task.digit)
                moved = (pairs.expected[:, place] - pairs.clean.answer_tokens[:, place]) % 10
                assert set(moved.tolist()) <= {1, 9}
                assert (np.delete(pairs.expected, place, 1) == np.delete(pairs.clean.answer_tokens, place, 1)).all()


def _value(row: np.ndarray) -> int:
    return int("".join(map(str, row[1:].tolist())))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layers", [1, 2])
def test_planted_roles_are_found_exactly(layers: int, seed: int) -> None:
    planted = adder(4, layers=layers, seed=seed)
    roles = planted_roles(planted, seed=seed)
    assert found_roles(roles) == planted.truth.roles
    assert roles.coverage.value == 1
    for tag in roles.tags:
        assert tag.match.value == 1
        assert tag.random <= 0.15
        assert tag.p_shuffled < 0.05
        assert tag.p_random < 0.05


def test_a_split_job_is_found_as_a_pair_and_by_no_single_head() -> None:
    planted = adder(3, split=True, seed=1)
    roles = planted_roles(planted)
    assert found_roles(roles) == planted.truth.roles
    couples = {
        tuple((node.position, node.layer, node.head) for node in tag.nodes): (
            tag.task.name,
            tag.task.column,
            tag.task.digit,
        )
        for tag in roles.tags
        if len(tag.nodes) == 2 and tag.strength != "weak"
    }
    assert couples == planted.truth.pairs


def test_noise_gets_no_tag() -> None:
    roles = planted_roles(adder(3, null=True), layers_all=True)
    assert roles.tested > 50
    assert roles.tags == ()


def test_permuting_heads_permutes_the_table_and_nothing_else() -> None:
    planted, order = adder(3, seed=2), [3, 1, 0, 2]
    one = found_roles(planted_roles(planted))
    other = planted_roles(type(planted)(permuted_heads(planted.model, 0, order), planted.truth))
    moved = {(p, layer, order[head]): role for (p, layer, head), role in found_roles(other).items()}
    assert moved == one


def test_a_two_way_head_is_not_taken_for_a_three_way_one() -> None:
    """With columns=2 a nine in the column below changes nothing, so ST must not be found."""
    roles = planted_roles(adder(3, columns=2))
    assert {tag.task.name for tag in roles.tags if tag.strength != "weak"} == {"SA", "SC"}


def test_a_trained_one_layer_model_has_the_published_heads() -> None:
    stored_model = stored("one-layer")
    model, form = stored_model.model, stored_model.recipe.format
    questions = varied(form, 50, 1)
    nodes = all_nodes(model, form, form.predicting)
    useful = ablate(model, questions, nodes, varied(form, 50, 2)).useful()
    attention = mean_attention(model, questions)
    roles = find_roles(model, form, useful, tasks(form), pairs=60, attention=attention)
    assert roles.coverage.value == 1
    base = {tag.nodes[0].head for tag in roles.tags if tag.task.name == "SA" and len(tag.nodes) == 1}
    below = {t.nodes[0].head for t in roles.tags if t.task.name == "ST" and t.task.digit == t.task.column + 1}
    assert (len(base), len(below)) == (1, 1)
    assert base != below
    node = Node(form.predicts(2), 0, base.pop())
    assert {name.split("=")[0] for name in attended(attention, node, form)[:2]} == {"D2", "D'2"}


def test_the_mlps_write_the_answer_digit() -> None:
    model, form = stored("two-layer").model, stored("two-layer").recipe.format
    searched = tasks(form, mlps=True)
    mlps = [Node(form.predicts(i), 1) for i in range(5)]
    roles = find_roles(model, form, mlps, searched, pairs=40)
    assert {tag.task.name for tag in roles.tags} <= {"A+"}


def test_patching_the_clean_value_changes_nothing() -> None:
    planted = adder(5)
    pairs = draw_pairs(Format(5), Task("SA", 2, 2), 30, 0)
    same = type(pairs)(pairs.task, pairs.clean, pairs.clean, pairs.clean.answer_tokens, pairs.shuffled)
    got = patch(planted.model, same, [(Node(14, 0, head),) for head in range(4)])
    assert got.matches.all()


def test_three_cases_lie_apart_where_they_are_told() -> None:
    """In the second layer they do; the first layer's output is a sum of two digits, one line of points."""
    model, form = stored("two-layer").model, stored("two-layer").recipe.format
    late = tricase(model, form, Node(13, 1, 0), 3)
    assert late.accepted or (late.agreement > 0.9 and late.variance > 0.3)
    assert abs(late.control) < 0.05
    assert all(tricase(model, form, Node(13, 0, head), 3).agreement < 0.5 for head in range(3))


def test_holm_is_the_textbook_one() -> None:
    p = [0.01, 0.04, 0.03, float("nan"), 0.005]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, np.nan, 0.02])
    assert holm([]).size == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task("SX", 1, 1), "sub-task 'SX'"),
        (lambda: Task("SC", 3, 1), "no say"),
        (lambda: draw_pairs(Format(3), Task("SA", 3, 3), 5, 0), "columns 0 to 2"),
        (lambda: draw_pairs(Format(3), Task("MB", 0, 1), 5, 0), "signed=True"),
        (lambda: draw_pairs(FORM, Task("MT", 4, 5), 5, 0), "decides its sign"),
    ],
)
def test_bad_tasks_are_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]
