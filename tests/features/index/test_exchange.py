"""Neuronpedia JSON out and in: the same units, and foreign fields kept."""

import json
import shutil
from pathlib import Path

import pytest
from makers import by_hand

from cutaway.errors import CutawayError, UsageError
from cutaway.features.index import FeatureIndex, add_notes, check_index, open_index, view
from cutaway.features.index.exchange import export_neuronpedia, import_neuronpedia, index_of_records, record_of_unit
from cutaway.features.neuronpedia import record_of, write_neuronpedia

FOREIGN = {
    "modelId": "gemma/2b", "layer": "6-res-jb", "index": "3", "frac_nonzero": 0.012345678901234567,
    "pos_str": ["▁x", "</s>"], "pos_values": [1.5, 1.25], "neg_str": ["a"], "neg_values": [-0.1],
    "freq_hist_data_bar_values": [0.05, 0.15], "freq_hist_data_bar_heights": [10.0, 2.0],
    "n_prompts_total": 24576, "n_tokens_in_prompt": 128, "dataset": "some/text",
    "explanations": [{"description": "words of law", "scores": [{"value": 0.7}], "typeName": "x"}],
    "correlated_neurons_pearson": [0.1], "vector": [1.0, 2.0], "creator": {"name": "someone"},
    "activations": [
        {"tokens": ["a", " b", "a"], "values": [0.0, 0.1, 1e-17], "bin_min": 0.1, "dfaValues": [1, 2, 3]},
        {"tokens": ["c"], "values": [7.123456789012345], "bin_contains": 0.5},
    ],
}  # fmt: skip


def test_units_read_back_make_the_same_pages(index: FeatureIndex, tmp_path: Path) -> None:
    node = {"id": 0, "tokens": ["the"], "role": "activating", "importance": 1.0, "activation": 1.0}
    graph = {"nodes": [node], "edges": []}
    shutil.copytree(index.folder, tmp_path / "own")  # the other tests' index stays as it is
    index = open_index(tmp_path / "own")
    index = add_notes(index, {(1, "graph"): graph, (1, "explanations"): [{"description": "articles", "score": 0.4}]})
    index = add_notes(index, {(2, "explanations"): [{"description": "all sorts"}]})
    names = [source.name for source in index.sources]
    for name in names:
        export_neuronpedia(index, name, tmp_path / name)
    back = import_neuronpedia([tmp_path / name for name in names], tmp_path / "back")
    check_index(back)
    assert back.sources == index.sources
    assert view.provenance(back) == view.provenance(index)
    for number in range(index.n_units):
        ours, theirs = view.unit_view(index, number), view.unit_view(back, number)
        assert theirs == ours, index.place(number)
    for name in names:
        export_neuronpedia(back, name, tmp_path / "again" / name)
        for path in sorted((tmp_path / name).glob("batch-*.json")):
            assert json.loads(path.read_text()) == json.loads((tmp_path / "again" / name / path.name).read_text())


def test_foreign_features_come_back_exactly(tmp_path: Path) -> None:
    record = record_of(FOREIGN)
    write_neuronpedia([record], tmp_path / "in")
    found = import_neuronpedia(tmp_path / "in", tmp_path / "index")
    assert found.model == "gemma--2b"
    assert [source.name for source in found.sources] == ["6-res-jb"]
    number = found.number("6-res-jb", 3)
    again = record_of_unit(found, number)
    assert again.to_dict() == {**record.to_dict(), "model_id": "gemma--2b", "modelId": "gemma--2b"}
    data, missing = view.unit_view(found, number)
    assert data["extra"]["creator"] == {"name": "someone"}
    assert data["texts"][0]["values"] == [0.0, 0.1, 1e-17]
    assert data["explanations"][0]["description"] == "words of law"
    assert missing == ["samples", "graph"]
    assert view.unit_view(found, 0)[0]["texts"] == []  # numbers in between are silent


def test_odd_records_are_refused(tmp_path: Path) -> None:
    record = record_of(FOREIGN)
    other = record_of({**FOREIGN, "layer": "7-res-jb"})
    with pytest.raises(UsageError, match="twice"):
        index_of_records([[record, record]], tmp_path)
    with pytest.raises(UsageError, match="several sources"):
        index_of_records([[record, other]], tmp_path)
    with pytest.raises(UsageError, match="one name"):
        index_of_records([[record], [record]], tmp_path)
    with pytest.raises(UsageError, match="no feature"):
        index_of_records([], tmp_path)
    with pytest.raises(CutawayError, match=r"batch-N"):
        import_neuronpedia(tmp_path, tmp_path / "x")
    write_neuronpedia([record], tmp_path / "a")
    write_neuronpedia([record_of({**FOREIGN, "modelId": "another"})], tmp_path / "b")
    with pytest.raises(UsageError, match="several models"):
        import_neuronpedia([tmp_path / "a", tmp_path / "b"], tmp_path / "x")


def test_a_part_of_a_source_can_be_written(tmp_path: Path) -> None:
    index = by_hand(tmp_path / "index", [b"a", b"b", b"<c>"])
    export_neuronpedia(index, "dict", tmp_path / "some", units=[2, 4])
    found = json.loads((tmp_path / "some" / "batch-0.json").read_text())
    assert [each["index"] for each in found["features"]] == [2, 4]
