"""Features as Neuronpedia and SAEDashboard store them: ``batch-N.json`` with every key in both spellings.

SAEDashboard writes ``snake_case``, the hosted service ``camelCase``; a record is written with both and read from
either. Fields that this module does not know are kept and written back. Source: peers page, section 2.4.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError, UsageError

_FLAT = {
    "density": "frac_nonzero",
    "prompts": "n_prompts_total",
    "prompt_tokens": "n_tokens_in_prompt",
    "dataset": "dataset",
    "histogram_values": "freq_hist_data_bar_values",
    "histogram_heights": "freq_hist_data_bar_heights",
    "positive": "pos_str",
    "positive_values": "pos_values",
    "negative": "neg_str",
    "negative_values": "neg_values",
}
_PLACE = {"model_id": "model", "layer": "source", "feature_index": "index"}


@dataclass(frozen=True)
class Example:
    """A text with the feature's value at every token."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.values) or not self.tokens:
            raise UsageError(f"example: {len(self.tokens)} tokens and {len(self.values)} values; give one for each")


@dataclass(frozen=True)
class FeatureRecord:
    """One feature as other tools show it."""

    model: str
    source: str
    """Layer and dictionary: ``15-cutaway-topk``."""
    index: int
    examples: tuple[Example, ...] = ()
    """Strongest first."""
    density: float = 0.0
    """Share of tokens where it is active."""
    prompts: int = 0
    prompt_tokens: int = 0
    dataset: str = ""
    histogram_values: tuple[float, ...] = ()
    histogram_heights: tuple[float, ...] = ()
    positive: tuple[str, ...] = ()
    """Tokens whose logits it raises most."""
    positive_values: tuple[float, ...] = ()
    negative: tuple[str, ...] = ()
    negative_values: tuple[float, ...] = ()
    description: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of other tools, written back as they came."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record in both spellings."""
        plain: dict[str, Any] = {name: getattr(self, ours) for name, ours in _PLACE.items()}
        plain |= {name: _listed(getattr(self, ours)) for ours, name in _FLAT.items()}
        plain["activations"] = [_example(each) for each in self.examples]
        if self.description:
            plain["explanations"] = [{"description": self.description}]
        return {**self.extra, **_both(plain), "index": self.index}


def record_of(data: Mapping[str, Any]) -> FeatureRecord:
    """Read one feature in either spelling; CutawayError where its index or an example is missing or damaged."""
    left = dict(data)
    index = left.pop("index", None)
    taken = {ours: _take(left, name) for name, ours in _PLACE.items()} | {o: _take(left, n) for o, n in _FLAT.items()}
    taken["index"] = index if taken["index"] is None else taken["index"]
    try:
        taken["index"] = int(taken["index"])
        taken["examples"] = tuple(_read_example(each) for each in _take(left, "activations") or ())
    except (TypeError, ValueError, KeyError) as error:
        raise CutawayError(f"not a feature as Neuronpedia stores it: {error!r}") from error
    described = left.get("explanations") or []
    if len(described) == 1 and set(described[0]) == {"description"}:
        taken["description"] = str(described[0]["description"])
        del left["explanations"]
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in taken.items() if value is not None
    }
    known = {"model": "", "source": "", **known, "extra": left}
    return FeatureRecord(**known)


def write_neuronpedia(
    records: Sequence[FeatureRecord],
    folder: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    batch: int = 128,
) -> None:
    """Write ``batch-N.json``, ``run_settings.json`` and ``skipped_indexes.json`` (features that never fired)."""
    if not records:
        raise UsageError("no feature to export")
    if len({(each.model, each.source) for each in records}) > 1:
        raise UsageError("features of several models or dictionaries; export each into its own folder")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = {"model_id": records[0].model, "layer": records[0].source, "sae_id": records[0].source}
    for number, start in enumerate(range(0, len(records), batch)):
        features = [each.to_dict() for each in records[start : start + batch]]
        _dump(folder / f"batch-{number}.json", {**_both(place), "features": features})
    _dump(folder / "run_settings.json", {**_both(place), **(settings or {})})
    silent = [each.index for each in records if not each.examples and each.density == 0]
    _dump(folder / "skipped_indexes.json", {**_both(place), "skipped_indexes": silent})


def read_neuronpedia(folder: str | Path) -> tuple[FeatureRecord, ...]:
    """Read every ``batch-N.json`` of a folder, in order of N."""
    paths = sorted(Path(folder).glob("batch-*.json"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    if not paths:
        raise CutawayError(f"{folder} holds no batch-N.json")
    return tuple(record_of(each) for path in paths for each in _features(path))


def _features(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        batch = json.loads(path.read_text(encoding="utf-8"))
        place = {"model_id": batch.get("model_id", ""), "layer": batch.get("layer", batch.get("sae_id", ""))}
        return [{**place, **each} for each in batch["features"]]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CutawayError(f"{path} is no batch of features: {error!r}") from error


def _example(example: Example) -> dict[str, Any]:
    best = max(range(len(example.values)), key=example.values.__getitem__)
    plain = {
        "tokens": list(example.tokens),
        "values": list(example.values),
        "max_value": example.values[best],
        "qualifying_token_index": best,
    }
    return {**_both(plain), **example.extra}


def _read_example(data: Mapping[str, Any]) -> Example:
    left = dict(data)
    tokens, values = _take(left, "tokens"), _take(left, "values")
    for name in ("max_value", "qualifying_token_index"):
        _take(left, name)
    if tokens is None or values is None:
        raise KeyError("tokens" if tokens is None else "values")
    return Example(tuple(map(str, tokens)), tuple(map(float, values)), left)


def _both(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {**plain, **{_camel(name): value for name, value in plain.items()}}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _take(data: dict[str, Any], name: str) -> Any:
    """Take a field out in whichever spelling it has."""
    camel = data.pop(_camel(name), None)
    return data.pop(name, camel) if name != _camel(name) else camel


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _dump(path: Path, content: Any) -> None:
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UsageError(f"{path.name}: a value is NaN or infinite, which JSON cannot hold") from error
    path.write_text(text + "\n", encoding="utf-8")
