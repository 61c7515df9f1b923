"""Worst of many phrasings: against numpy, without the noise's bias, and files that are refused by line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.finetuning.latent_adversarial_paraphrasing.calibration import noise_trials
from cutaway.finetuning.latent_adversarial_paraphrasing.worst import (
    Consistency,
    naive_worst,
    read_phrasings,
    split_worst,
)

LINE = {"instruction": "Say hello.", "paraphrases": [f"Hello, way {i}." for i in range(10)], "index": 0}


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=6))
def test_scores_by_query(rows: list[list[float]]) -> None:
    found = Consistency(np.array(rows))
    assert found.each("original").tolist() == [row[0] for row in rows]
    assert found.each("worst").tolist() == [min(row) for row in rows]
    assert found.each("best").tolist() == [max(row) for row in rows]
    assert (found.each("worst") <= found.each("average") + 1e-9).all()
    assert found.interval("worst").value == pytest.approx(np.mean([min(row) for row in rows]))


def test_noise_makes_the_naive_worst_too_low_and_not_the_split_one() -> None:
    unbiased, biased, n = noise_trials(60)
    assert unbiased / n >= 0.88
    assert biased == 0


def test_the_split_worst_is_the_worst_where_there_is_no_noise() -> None:
    truth = np.random.default_rng(0).random((20, 5))
    samples = np.repeat(truth[:, :, None], 4, axis=2)
    assert split_worst(samples) == pytest.approx(truth.min(1))
    assert naive_worst(samples) == pytest.approx(truth.min(1))


def test_a_file_of_phrasings_is_read_with_the_original_in_front(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n" + json.dumps({**LINE, "instruction": "Say bye."}) + "\n")
    found = read_phrasings(path)
    assert [len(query) for query in found] == [11, 11]
    assert found[1][0] == "Say bye."


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: an object with"),
        (json.dumps({"instruction": "a"}), "line 2: an object with"),
        (json.dumps({**LINE, "paraphrases": ["a", "b"]}), "line 2: 3 phrasings"),
        (json.dumps({**LINE, "paraphrases": [" ", *LINE["paraphrases"][1:]]}), "line 2: every phrasing needs text"),  # type: ignore[index]
        (json.dumps({**LINE, "paraphrases": LINE["paraphrases"][1:] * 2}), "line 2: 19 phrasings"),  # type: ignore[index]
        (json.dumps({**LINE, "paraphrases": [LINE["instruction"], *LINE["paraphrases"][1:]]}), "line 2: a phrasing"),  # type: ignore[index]
        (json.dumps(LINE), "stands there twice"),
    ],
)
def test_a_bad_line_is_named(line: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + line + "\n")
    with pytest.raises(UsageError, match=match):
        read_phrasings(path)


def test_bad_scores(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="no queries"):
        read_phrasings(tmp_path / "empty.jsonl")
    with pytest.raises(UsageError, match="2 phrasings or more"):
        Consistency(np.ones((3, 1)))
    with pytest.raises(UsageError, match="finite"):
        Consistency(np.array([[1.0, np.nan]]))
    with pytest.raises(UsageError, match="choose original"):
        Consistency(np.ones((3, 2))).each("median")
    with pytest.raises(UsageError, match="2 samples or more"):
        split_worst(np.ones((3, 2, 1)))
