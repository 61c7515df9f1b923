"""Generated sets without leaks, the last token under padding and chat, the study on a tiny model."""

import json
from collections import Counter

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.model import Batch
from cutaway.planted import null_model
from cutaway.probes.pooled import activations
from cutaway.probes.sae_answerability import Item, celebrity_items, equation_items, measure, qnli_items, render
from cutaway.probes.sae_answerability.calibration import leaks
from cutaway.probes.sae_answerability.data import TEMPLATES
from cutaway.probes.sae_answerability.method import check_items, labelled, plain_scores, prompts_of
from cutaway.probes.sae_answerability.study import AnswerabilityConfig, AnswerabilityStudy, default_items
from cutaway.study import Lab


@pytest.fixture(scope="module")
def tiny():
    return null_model(seed=1).model


@pytest.mark.parametrize("make", [equation_items, celebrity_items])
@pytest.mark.parametrize("kind", ["plain", "matched", "swapped"])
def test_generated_sets_are_balanced_and_repeatable(make, kind):
    items = make(200, kind, 3)
    assert items == make(200, kind, 3) != make(200, kind, 4)
    assert sum(item.answerable for item in items) == 100
    assert set(Counter(item.group for item in items).values()) == {2}
    by_group = {}
    for item in items:
        by_group.setdefault(item.group, []).append(item)
    for pair in by_group.values():
        assert {item.answerable for item in pair} == {True, False}
        if kind == "matched":
            assert len({item.context for item in pair}) == 1
        if kind == "swapped":
            assert len({item.question for item in pair}) == 1


@pytest.mark.parametrize("make", [equation_items, celebrity_items])
def test_matched_sets_leak_nothing(make):
    for kind in ("matched", "swapped"):
        assert leaks(make(600, kind, 1)) <= 0.55


def test_the_plain_equation_leaks_as_the_card_says():
    items = equation_items(400, "plain", 1)
    assert plain_scores(items, items)["shared words"].value > 0.9


def test_an_equation_says_what_its_label_says():
    for item in equation_items(60, "matched", 0) + equation_items(60, "swapped", 0):
        facts = dict(part.split(" = ") for part in item.context.rstrip(".").split(". "))
        asked = item.question.removeprefix("What is ").rstrip("?")
        names = [each for each in facts[asked].split() if each.isalpha()]
        assert all(name in facts for name in names) == item.answerable


def test_a_person_is_asked_what_the_passage_says_of_them():
    for item in celebrity_items(60, "matched", 0) + celebrity_items(60, "swapped", 0):
        verb = {"live": "lives", "play": "plays", "keep": "keeps", "cook": "cooks", "practise": "practises",
                "work": "works", "paint": "paints"}  # fmt: skip
        person = " ".join(
            word for word in item.question.rstrip("?").split() if word[0].isupper() and word not in ("In", "Which")
        )
        said = next(verb[word] for word in item.question.rstrip("?").split() if word in verb)
        assert (f"{person} {said}" in item.context) == item.answerable


def test_real_items_join_what_shares_a_passage(tmp_path):
    items, digest = qnli_items(default_items(), 200)
    assert sum(item.answerable for item in items) == 100
    assert len(digest) == 64
    rows = [
        {"id": "a", "question": "q1", "context": "c1", "answerable": True},
        {"id": "b", "question": "q2", "context": "c1", "answerable": False},
        {"id": "c", "question": "q2", "context": "c2", "answerable": True},
        {"id": "d", "question": "q3", "context": "c3", "answerable": False},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    group = {item.id: item.group for item in qnli_items(path, 4)[0]}
    assert group["a"] == group["b"] == group["c"] != group["d"]


def test_the_last_token_is_the_last_under_any_padding_and_template(tiny):
    items = [*celebrity_items(6, "matched", 0), *equation_items(6, "matched", 0)]
    rows = prompts_of(tiny, items, TEMPLATES)
    found = activations(tiny, rows, "resid_post.1", "last")["resid_post.1", "last"]
    width = max(map(len, rows))
    left = Batch(
        torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows]),
    )
    padded = tiny.capture(left, "resid_post.1", "last")["resid_post.1"][:, 0]
    for i, row in enumerate(rows):
        alone = tiny.hf(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0, -1]
        assert torch.allclose(found[i], alone, atol=1e-4)
        assert torch.allclose(padded[i], alone, atol=1e-4)


def test_a_dictionary_of_another_width_is_refused(tiny):
    sets = {"a": celebrity_items(40)}
    with pytest.raises(UsageError, match="this dictionary reads 5"):
        labelled(sets, torch.randn(40, 32), SparseDictionary(5, 10, k=2))


def test_measure_fills_the_table(tiny):
    sets = {"equation": equation_items(60), "celebrity": celebrity_items(60)}
    found = measure(
        tiny,
        sets,
        ["resid_post.1"],
        ("mean difference", "1 latent"),
        templates=("passage first",),
        latents=64,
        resamples=2,
    )
    assert found.complete
    assert len(found.sites[0].table.cells) == 8
    assert found.control is not None
    assert json.dumps(found.to_dict(), default=str)
    assert abs(found.shortcuts["equation", "shared words"].value - 0.5) < 0.15


@pytest.fixture
def lab(tmp_path, tiny):
    lab = Lab(tmp_path)
    lab._models["tiny", "float32"] = tiny
    return lab


def test_the_study_runs_and_stops(lab):
    config = AnswerabilityConfig(
        model="tiny", n=60, longest=250, generated=60, templates=("passage first", "json"), sites=("resid_post.1",),
        families=("mean difference", "1 latent"), latents=32, resamples=0,
    )  # fmt: skip
    study = AnswerabilityStudy()
    found = study.run(config, lab)
    names = {item.name for item in found.items}
    assert found.complete
    assert "AUROC of mean difference at resid_post.1, real to equation" in names
    assert "AUROC of shared words alone on real" in names
    assert found.inputs == study.inputs(config, lab)
    assert len(found.charts) == 3

    def stop(progress):
        raise KeyboardInterrupt

    lab.progress = stop
    assert not study.run(config.model_copy(update={"seed": 1}), lab).complete


def test_bad_input(tiny, tmp_path):
    item = Item("a", "q", "c", True, "g")
    path = tmp_path / "x.jsonl"
    row = {"id": "a", "question": "q", "context": "c", "answerable": True}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "answerable": False}))
    odd = tmp_path / "y.jsonl"
    odd.write_text(json.dumps({**row, "answerable": 1}))
    for call, match in [
        (lambda: qnli_items(path, 2), "both labels"),
        (lambda: qnli_items(odd, 2), "true or false"),
        (lambda: qnli_items(tmp_path / "no", 2), "no such file"),
        (lambda: qnli_items(default_items(), 10_000), "n=10000"),
        (lambda: equation_items(3), "even number"),
        (lambda: celebrity_items(4, "odd"), "kind='odd'"),
        (lambda: render(item, "poem"), "template 'poem'"),
        (lambda: render(item, "chat"), "needs the model"),
        (lambda: check_items({"a": [item] * 10}), "30 or more"),
        (lambda: check_items({"a": [item, Item("a", "q", "c", False, "g")] * 20}), "both labels"),
        (lambda: check_items({"a": [Item(str(i), " ", "c", True, "g") for i in range(40)]}), "empty question"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
