"""Export in both spellings, unknown fields kept, bad input."""

import json
from pathlib import Path

import pytest

from cutaway.errors import CutawayError, UsageError
from cutaway.features.neuronpedia import Example, FeatureRecord, read_neuronpedia, record_of, write_neuronpedia

HOSTED = {
    "modelId": "gpt2-small",
    "layer": "6-res",
    "index": "650",
    "explanations": [{"description": "years", "authorId": "x"}],
    "activations": [{"tokens": [" in", " 1999"], "values": [0, 3.5], "maxValue": 3.5, "dataIndex": "9"}],
    "frac_nonzero": 0.01,
    "pos_str": [" 2000"],
    "pos_values": [1.5],
    "umap": {"x": 1},
}


def record(index: int) -> FeatureRecord:
    examples = (Example((" </script>", "“é”"), (0.0, 2.5)),)
    return FeatureRecord("smol", "15-cutaway", index, examples, density=0.5, positive=(" a",), positive_values=(0.25,))


def test_both_spellings_are_written_and_either_is_read() -> None:
    data = record(3).to_dict()
    for snake, camel in (("model_id", "modelId"), ("frac_nonzero", "fracNonzero"), ("feature_index", "featureIndex")):
        assert data[snake] == data[camel]
    assert data["activations"][0]["maxValue"] == data["activations"][0]["max_value"] == 2.5
    camel_only = {key: value for key, value in data.items() if "_" not in key}
    snake_only = {key: value for key, value in data.items() if key == key.lower()}
    assert record_of(camel_only) == record_of(snake_only) == record_of(data) == record(3)


def test_unknown_fields_survive() -> None:
    found = record_of(HOSTED)
    assert (found.model, found.index, found.positive, found.density) == ("gpt2-small", 650, (" 2000",), 0.01)
    again = found.to_dict()
    assert again["umap"] == {"x": 1}
    assert again["explanations"] == HOSTED["explanations"]
    assert again["activations"][0]["dataIndex"] == "9"
    assert record_of(again) == found


def test_folders(tmp_path: Path) -> None:
    records = (*[record(i) for i in range(5)], FeatureRecord("smol", "15-cutaway", 5))
    write_neuronpedia(records, tmp_path, settings={"tokens": 7}, batch=2)
    assert sorted(path.name for path in tmp_path.glob("batch-*.json")) == [f"batch-{i}.json" for i in range(3)]
    assert read_neuronpedia(tmp_path) == records
    assert json.loads((tmp_path / "skipped_indexes.json").read_text())["skipped_indexes"] == [5]
    assert json.loads((tmp_path / "run_settings.json").read_text())["tokens"] == 7


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one for each"):
        Example(("a",), (1.0, 2.0))
    with pytest.raises(CutawayError, match="not a feature"):
        record_of({"activations": [{"tokens": ["a"]}], "index": 1})
    with pytest.raises(CutawayError, match="not a feature"):
        record_of({})
    with pytest.raises(CutawayError, match=r"no batch-N\.json"):
        read_neuronpedia(tmp_path)
    with pytest.raises(UsageError, match="several models"):
        write_neuronpedia([record(1), FeatureRecord("other", "x", 1)], tmp_path)
    with pytest.raises(UsageError, match="NaN or infinite"):
        write_neuronpedia([FeatureRecord("smol", "x", 1, density=float("nan"))], tmp_path)
    (tmp_path / "batch-0.json").write_text("[]")
    with pytest.raises(CutawayError, match="no batch of features"):
        read_neuronpedia(tmp_path)
