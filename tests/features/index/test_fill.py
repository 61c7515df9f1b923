"""Filling: values of a direct forward, resuming, damage, and what is refused."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import ODD, SMALL, detector, texts, tiny
from tokenizers import processors

from cutaway.errors import CutawayError, UsageError
from cutaway.features.corpus import open_corpus
from cutaway.features.harvest import GROUP
from cutaway.features.index import FeatureIndex, FillConfig, Term, check_index, fill, open_index
from cutaway.features.index.postings import matching
from cutaway.features.index.store import FILLING, HEADER
from cutaway.features.index.view import search
from cutaway.model import Model

MANY = texts(200, seed=3)


def same(a: FeatureIndex, b: FeatureIndex) -> None:
    for part, arrays in a.parts.items():
        for name, array in arrays.items():
            other = b.parts[part][name]
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, other, atol=1e-5, err_msg=f"{part} {name}")
            else:
                np.testing.assert_array_equal(array, other, err_msg=f"{part} {name}")


def test_shown_values_are_those_of_a_direct_forward(model: Model, index: FeatureIndex) -> None:
    draw = random.Random(0)
    checked = 0
    dictionary = detector(model, ODD)
    while checked < 100:
        number = draw.randrange(index.n_units)
        source, unit = index.place(number)
        shown = index.texts(number) + index.texts(number, samples=True)
        if not shown:
            continue
        text = draw.choice(shown)
        ids = index.context(text.context)
        with torch.no_grad():
            held = model.capture([ids], source.site, special=True)[source.site][0]
            column = held[:, unit] if source.kind == "neurons" else dictionary.dense(held)[:, unit]
        for i, (token, value) in enumerate(zip(text.ids, text.values, strict=True)):
            assert token == ids[text.start + i]
            if value is not None:
                assert value == pytest.approx(column[text.start + i].item(), abs=1e-3)
        assert text.values[text.at] == pytest.approx(text.peak)
        checked += 1


def test_a_planted_feature_is_the_only_one_its_token_finds_there(index: FeatureIndex) -> None:
    number = index.number("odd", 0)
    assert {index.vocabulary.text(text.ids[text.at]) for text in index.texts(number)} == {ODD}
    found = search(index, [Term(ODD, "activating")], source="odd")
    assert [(each["source"], each["unit"]) for each in found["units"]] == [("odd", 0)]
    assert index.texts(index.number("odd", 1)) == []
    assert index.density(index.number("odd", 1)) == 0.0


def test_start_and_special_tokens_never_count(model: Model, tmp_path: Path) -> None:
    started = tiny()
    eos = started.tokenizer.eos_token_id
    started.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", eos)]
    )
    found = fill(started, texts(10), tmp_path, layers=[0], config=replace(SMALL, tokens=200))
    assert found.context(0)[0] == eos
    for number in range(found.n_units):
        for text in found.texts(number):
            assert text.start >= 1
            assert eos not in text.ids
    assert found.about["tokens"] == sum(len(found.context(i)) - 1 for i in range(found.about["texts"]))


def test_special_tokens_within_a_text_have_no_value(model: Model, tmp_path: Path) -> None:
    corpus = open_corpus(["the a<eos>the Paris the" * 3])
    found = fill(model, corpus, tmp_path, layers=[0], config=replace(SMALL, window=20, before=19))
    eos = model.tokenizer.eos_token_id
    shown = [text for number in range(found.n_units) for text in found.texts(number)]
    held = [pair for text in shown for pair in zip(text.ids, text.values, strict=True)]
    assert any(token == eos for token, _ in held)
    assert all((value is None) == (token == eos) for token, value in held)


def test_the_batch_changes_nothing_but_rounding(model: Model, tmp_path: Path) -> None:
    a, b = (fill(model, texts(12), tmp_path / str(n), config=replace(SMALL, batch=n)) for n in (1, 64))
    np.testing.assert_array_equal(a.parts["contexts"]["ids"], b.parts["contexts"]["ids"])
    np.testing.assert_allclose(a.parts["units"]["peak"], b.parts["units"]["peak"], atol=1e-5)


def stop_after(tokens: int) -> object:
    def tick(seen: int) -> None:
        if seen > tokens:
            raise KeyboardInterrupt

    return tick


def test_a_stopped_filling_is_partial_and_goes_on_without_doubles(model: Model, tmp_path: Path) -> None:
    config = replace(SMALL, tokens=10**6, batch=32, length=24)
    whole = fill(model, MANY, tmp_path / "whole", config=config)
    assert whole.about["texts"] > 2 * GROUP
    third = whole.about["tokens"] // 3
    partial = fill(model, MANY, tmp_path / "cut", config=config, save_every=0.0, tick=stop_after(2 * third))  # type: ignore[arg-type]
    assert not partial.about["complete"]
    assert 0 < partial.about["tokens"] < whole.about["tokens"]
    assert partial.about["texts"] % GROUP == 0
    assert (tmp_path / "cut" / FILLING).exists()
    seen: list[int] = []
    ended = fill(model, MANY, tmp_path / "cut", config=config, tick=seen.append)
    assert seen[0] == partial.about["tokens"]
    assert ended.about["complete"]
    assert not (tmp_path / "cut" / FILLING).exists()
    same(ended, whole)
    again = fill(model, MANY, tmp_path / "cut", config=config, tick=stop_after(-1))  # type: ignore[arg-type]
    assert again.about["tokens"] == whole.about["tokens"]


def test_a_killed_filling_is_seen_at_opening(model: Model, tmp_path: Path) -> None:
    def die(seen: int) -> None:
        if seen > 3000:
            raise SystemExit  # as a kill: nothing is tidied up

    config = replace(SMALL, tokens=10**6, batch=32, length=24)
    with pytest.raises(SystemExit):
        fill(model, MANY, tmp_path, config=config, save_every=0.0, tick=die)
    with pytest.raises(CutawayError, match="half-written"):
        open_index(tmp_path)
    assert fill(model, MANY, tmp_path, config=config).about["complete"]


def test_an_early_stop_with_nothing_saved_leaves_nothing(model: Model, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(model, texts(), tmp_path, config=SMALL, tick=stop_after(0))  # type: ignore[arg-type]
    with pytest.raises(CutawayError, match="no feature index"):
        open_index(tmp_path)


def test_damage_is_named(model: Model, index: FeatureIndex, tmp_path: Path) -> None:
    for part in index.about["files"]:
        folder = tmp_path / part
        shutil.copytree(index.folder, folder)
        path = folder / index.about["files"][part]["name"]
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(CutawayError, match=part):
            open_index(folder)
        path.unlink()
        with pytest.raises(CutawayError, match="no feature index"):
            open_index(folder)
    folder = tmp_path / "flipped"
    shutil.copytree(index.folder, folder)
    path = folder / index.about["files"]["units"]["name"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check_index(index)
    with pytest.raises(CutawayError, match="damaged"):
        check_index(open_index(folder))
    (folder / HEADER).write_text(json.dumps({**index.about, "schema": 99}))
    with pytest.raises(CutawayError, match="schema 99"):
        open_index(folder)
    (folder / HEADER).write_text("{")
    with pytest.raises(CutawayError, match="no feature index"):
        open_index(folder)


def test_another_filling_is_not_mixed_in(model: Model, tmp_path: Path) -> None:
    fill(model, texts(), tmp_path, config=SMALL)
    with pytest.raises(UsageError, match="another index: corpus differs"):
        fill(model, texts(seed=9), tmp_path, config=SMALL)
    with pytest.raises(UsageError, match="model differs"):
        fill(tiny(1), texts(), tmp_path, config=SMALL)
    with pytest.raises(UsageError, match="top differs"):
        fill(model, texts(), tmp_path, config=replace(SMALL, top=5))


def test_what_cannot_be_indexed_is_refused(model: Model, tmp_path: Path) -> None:
    one = detector(model, ODD)
    for name in ("all", "search", "12", "a b", "../x", ""):
        with pytest.raises(UsageError, match="dictionary"):
            fill(model, texts(), tmp_path, dictionaries={name: one})
    with pytest.raises(UsageError, match="layer 3"):
        fill(model, texts(), tmp_path, layers=[3])
    with pytest.raises(UsageError, match="nothing to index"):
        fill(model, texts(), tmp_path, layers=[])
    nowhere = detector(model, ODD)
    nowhere.provenance = replace(nowhere.provenance, site="")
    with pytest.raises(UsageError, match="where it reads"):
        fill(model, texts(), tmp_path, dictionaries={"x": nowhere})
    foreign = detector(model, ODD)
    foreign.provenance = replace(foreign.provenance, fingerprint="0" * 64)
    with pytest.raises(UsageError, match="other weights"):
        fill(model, texts(), tmp_path, dictionaries={"x": foreign})
    for bad in ({"top": 0}, {"before": 64}, {"samples": -1}, {"tokens": 0}):
        with pytest.raises(UsageError):
            FillConfig(**bad)


def test_activations_that_overflow_are_named(tmp_path: Path) -> None:
    broken = tiny()
    with torch.no_grad():
        broken.hf.model.layers[1].mlp.up_proj.weight[0] = float("inf")
    with pytest.raises(CutawayError, match=r"layer 1.*NaN or infinity"):
        fill(broken, texts(), tmp_path, layers=[0, 1], config=SMALL)


def test_names_outside_are_refused(index: FeatureIndex) -> None:
    assert repr(index).startswith("FeatureIndex('tiny--model', 74 units")
    for layer in ("3", "-1", "od"):
        with pytest.raises(UsageError):
            index.source(layer)
    with pytest.raises(UsageError, match="did you mean 'odd'"):
        index.source("od")
    for unit in (-1, 24):
        with pytest.raises(UsageError, match="0 to 23"):
            index.number("0", unit)
    with pytest.raises(UsageError):
        index.context(10**6)
    assert len(matching(index.parts["postings"], index.vocabulary, [Term("no such token")], index.n_units)) == 0
