"""Texts read live against a forward pass of one's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from makers import ODD, SMALL, detector, texts, tiny

from cutaway.errors import CutawayError, UsageError
from cutaway.features.index import FeatureIndex, fill
from cutaway.features.index.live import Live, open_dictionary
from cutaway.model import Model

TEXT = f"the Paris,{ODD} and 🙂 a the"


def test_values_are_those_of_a_forward(model: Model, index: FeatureIndex) -> None:
    live = Live(index, model)
    assert live.same_weights
    ids = model.encode(TEXT, special=True)
    with torch.no_grad():
        held = model.capture([ids], ["neurons.1", "embed"], special=True)
    found = live.read(index.number("1", 7), TEXT)
    assert "".join(found["tokens"]) == TEXT
    assert found["values"] == pytest.approx(held["neurons.1"][0, :, 7].tolist(), abs=1e-6)
    odd = live.read(index.number("odd", 0), TEXT)
    assert [token for token, value in zip(odd["tokens"], odd["values"], strict=True) if value] == [ODD]


def test_what_fires_is_ordered_by_share_of_its_largest(model: Model, index: FeatureIndex) -> None:
    live = Live(index, model)
    found = live.fires(TEXT, limit=200)
    shares = [each["share"] for each in found["units"]]
    assert shares == sorted(shares, reverse=True)
    rows = {(each["source"], each["unit"]): each for each in found["units"]}
    assert rows["odd", 0]["share"] == pytest.approx(1.0)
    assert ("odd", 1) not in rows
    for number in range(index.n_units):
        source, unit = index.place(number)
        values = live.read(number, TEXT)["values"]
        largest, strongest = max(v for v in values if v is not None), index.strongest(number)
        if largest > 0 and strongest > 0:
            row = rows[source.name, unit]
            assert row["value"] == pytest.approx(largest)
            assert row["share"] == pytest.approx(largest / strongest)
            assert values[row["at"]] == pytest.approx(largest)
        else:
            assert (source.name, unit) not in rows
    assert len(live.fires(TEXT, limit=3)["units"]) == 3


def test_special_tokens_are_not_read(model: Model, index: FeatureIndex) -> None:
    found = Live(index, model).read(0, "the<eos>a")
    assert [value is None for value in found["values"]] == [False, True, False]


def test_texts_that_cannot_be_read_are_refused(model: Model, index: FeatureIndex) -> None:
    live = Live(index, model)
    for text, words in (("", "empty"), (" \n", "empty"), ("a" * 200, "200 tokens; at most 128"), ("<eos>", "no token")):
        with pytest.raises(UsageError, match=words):
            live.read(0, text)


def test_other_models_are_named(index: FeatureIndex, tmp_path: Path) -> None:
    other = Live(index, tiny(1))
    assert not other.same_weights
    assert not other.read(0, "the")["same_weights"]
    with pytest.raises(UsageError, match="is not the model"):
        _ = Live(index, tiny(layers=2)).readers


def test_a_source_whose_dictionary_is_gone_cannot_be_run(model: Model, tmp_path: Path) -> None:
    config = replace(SMALL, tokens=100)
    found = fill(model, texts(), tmp_path, layers=[0], dictionaries={"odd": detector(model, ODD)}, config=config)
    (tmp_path / "dictionaries" / "odd" / "dictionary.json").rename(tmp_path / "away.json")
    live = Live(found, model)
    assert "odd" not in live.readers
    with pytest.raises(UsageError, match="not stored"):
        live.read(found.number("odd", 0), "the")
    (tmp_path / "dictionaries" / "odd" / "dictionary.json").write_text("{")
    with pytest.raises(CutawayError, match="no dictionary"):
        open_dictionary(tmp_path / "dictionaries" / "odd")
