"""The study contract: one published system as a typed config, ``run`` and ``calibrate``.

A study wires a method to a model and to data. It returns plain `Findings`; whoever called it (the command
line, a notebook, `cutaway.ledger`) decides what to keep. Studies register by decorating their class with
`study`; the id is the file name of the system's card.
"""

import importlib
import json
import math
import os
import re
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from cutaway.charts import Chart, Heat, charts_json
from cutaway.errors import UsageError, nearest
from cutaway.sampling.types import Cost

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.stats import Interval

ARTIFACT_SUFFIXES = (".json", ".jsonl", ".csv", ".html", ".svg", ".parquet", ".safetensors")
"""What an artifact may be: formats that are data only, so that reading one never runs code."""

C = TypeVar("C", bound=BaseModel)
_registry: dict[str, "Study[Any]"] = {}


@dataclass(frozen=True)
class Finding:
    """A number with its interval, n, unit and control; or undefined, with the reason."""

    name: str
    value: float | None
    """None, NaN and infinities are all kept as None, and need a reason in `undefined`."""
    low: float | None = None
    """Lower end of the interval; None (or minus infinity) leaves it open."""
    high: float | None = None
    level: float = 0.95
    n: int | None = None
    unit: str = ""
    control: "Finding | None" = None
    """The same number where the effect cannot be."""
    undefined: str = ""

    def __post_init__(self) -> None:
        value, low, high = _finite(self.value), _finite(self.low), _finite(self.high)
        wrong = ""
        if value is None and not self.undefined:
            wrong = f"value={self.value} needs its reason; pass undefined='why there is no number'"
        elif value is not None and self.undefined:
            wrong = f"value={value} contradicts undefined={self.undefined!r}; keep one"
        elif any(end is not None and math.isnan(end) for end in (self.low, self.high)):
            wrong = f"interval [{self.low}, {self.high}]: use None for an open end"
        elif low is not None and high is not None and low > high:
            wrong = f"low={low} lies above high={high}"
        elif not 0 < self.level < 1:
            wrong = f"level={self.level} must lie in (0, 1)"
        if wrong:
            raise UsageError(f"finding {self.name!r}: {wrong}")
        for key, number in (("value", value), ("low", low), ("high", high)):
            object.__setattr__(self, key, number)

    @classmethod
    def of(
        cls,
        name: str,
        found: "Interval | None",
        *,
        n: int | None = None,
        unit: str = "",
        control: "Finding | None" = None,
        undefined: str = "too few values, or none that vary",
    ) -> "Finding":
        """Return an estimate, or the want of one, as a finding; ends that are no numbers stay open.

        n: None takes the interval's own. undefined: the reason to give where there is no value.
        """
        if found is None:
            return cls(name, None, n=n or 0, unit=unit, control=control, undefined=undefined)
        low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
        n = found.n if n is None else n
        if not math.isfinite(found.value):
            return cls(name, None, level=found.level, n=n, unit=unit, control=control, undefined=undefined)
        return cls(name, found.value, low, high, found.level, n, unit, control)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: undefined ({self.undefined})"
        low, high = ("open" if end is None else f"{end:.3g}" for end in (self.low, self.high))
        interval = "" if low == high == "open" else f" [{low}, {high}] at {self.level:g}"
        n = "" if self.n is None else f", n={self.n}"
        return f"{self.name}: {self.value:.4g}{self.unit and ' ' + self.unit}{interval}{n}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Findings:
    """What `Study.run` returns."""

    items: tuple[Finding, ...]
    summary: str
    """One line a reader can quote."""
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    """File name to content; the name ends in one of `ARTIFACT_SUFFIXES`."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What the numbers depended on: ``weights:<name>`` or ``data:<name>`` to its sha256."""
    cost: Cost = field(default_factory=Cost)
    complete: bool = True
    """False when a budget or Ctrl-C ended the run early."""
    result: Any = None
    """The method's own result object, for notebooks; never stored."""
    charts: tuple[Chart | Heat, ...] = ()
    """What to draw on the run's page; stored as the artifact ``charts.json``."""

    def __post_init__(self) -> None:
        names = [item.name for item in self.items]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"finding {twice[0]!r} appears twice; a finding's name is unique within a run")
        if "\n" in self.summary:
            raise UsageError(f"summary {self.summary[:40]!r}... has several lines; give one")
        for name in self.artifacts:
            if Path(name).name != name or not name.endswith(ARTIFACT_SUFFIXES):
                raise UsageError(f"artifact {name!r}: name it <name>{' or '.join(ARTIFACT_SUFFIXES)}")
        if self.charts:
            object.__setattr__(self, "artifacts", {**self.artifacts, "charts.json": charts_json(self.charts)})
        for name in self.inputs:
            if not name.startswith(("weights:", "data:")):
                raise UsageError(f"input {name!r}: name it weights:<name> or data:<name>")


@dataclass(frozen=True)
class Rate:
    """One measured calibration rate with what is required of it."""

    name: str
    hits: int
    trials: int
    at_least: float | None = None
    at_most: float | None = None
    what: str = ""
    """One sentence: what was counted."""

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.trials or self.trials < 1:
            raise UsageError(f"rate {self.name!r}: {self.hits} hits in {self.trials} trials is not a rate")

    @property
    def rate(self) -> float:
        return self.hits / self.trials

    @property
    def low(self) -> float:
        """Lower end of the 95% Clopper-Pearson interval."""
        from scipy.special import betaincinv

        return float(betaincinv(self.hits, self.trials - self.hits + 1, 0.025)) if self.hits else 0.0

    @property
    def high(self) -> float:
        """Upper end of the 95% Clopper-Pearson interval."""
        from scipy.special import betaincinv

        misses = self.trials - self.hits
        return float(betaincinv(self.hits + 1, misses, 0.975)) if misses else 1.0

    @property
    def passed(self) -> bool:
        """Whether the measured rate itself (not an end of its interval) meets the requirement."""
        above = self.at_least is None or self.rate >= self.at_least
        return above and (self.at_most is None or self.rate <= self.at_most)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate, "low": self.low, "high": self.high, "passed": self.passed}


@dataclass(frozen=True)
class Calibration:
    """A study measured on planted models: a truth it must recover, a null on which it must stay silent."""

    study: str
    rates: tuple[Rate, ...]
    seconds: float
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when every rate meets its requirement; a calibration that measured nothing has not passed."""
        return bool(self.rates) and all(rate.passed for rate in self.rates)

    def to_dict(self) -> dict[str, Any]:
        rates = [rate.to_dict() for rate in self.rates]
        return {**asdict(self), "settings": dict(self.settings), "rates": rates, "passed": self.passed}


@dataclass(frozen=True)
class Progress:
    """How far a run is: ``done`` of ``total`` (None when unknown) in ``unit``."""

    done: float
    total: float | None = None
    unit: str = ""
    note: str = ""


def cache_home() -> Path:
    """``$CUTAWAY_HOME``, else ``$XDG_CACHE_HOME/cutaway``, else ``~/.cache/cutaway``."""
    if given := os.environ.get("CUTAWAY_HOME"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cutaway"


@dataclass(eq=False)
class Lab:
    """The bench a study works at: where models, branch trees and progress come from."""

    home: Path = field(default_factory=cache_home)
    progress: Callable[[Progress], None] = field(default=lambda progress: None)
    fresh: bool = False
    """True: reuse nothing that was stored: rollouts, trained adapters, finished parts."""
    _models: dict[tuple[str, str], "Model"] = field(default_factory=dict, init=False, repr=False)
    _scratch: Path | None = field(default=None, init=False, repr=False)

    def model(self, spec: str | Path, dtype: str = "auto") -> "Model":
        """Load a model once per lab."""
        from cutaway.model import load_model

        key = (str(spec), dtype)
        if key not in self._models:
            self._models[key] = load_model(spec, dtype=dtype)
        return self._models[key]

    def folder(self, kind: str, key: str) -> Path:
        """Folder ``kind/key`` of the cache (made when missing); a fresh lab's own one goes with the lab."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
            raise UsageError(f"key {key!r} of {kind}: use letters, digits, '.', '_' and '-' only")
        folder = (self._scratch_folder() if self.fresh else self.home) / kind / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def activations(self) -> Path | None:
        """Folder in which activations that were read once are kept; None in a fresh lab, which reads them again."""
        return None if self.fresh else self.home / "activations"

    def tree_folder(self, key: str) -> Path:
        """Folder of the branch tree called ``key``."""
        return self.folder("trees", key)

    def _scratch_folder(self) -> Path:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="cutaway-fresh-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch


class StudyConfig(BaseModel):
    """Base of study configs: flat, frozen, unknown keys refused, a sentence under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Study(ABC, Generic[C]):
    """One published system. Subclass, set the class attributes, decorate with `study`."""

    id: ClassVar[str]
    """Kebab-case; the file name of the system's card."""
    title: ClassVar[str]
    paper: ClassVar[str]
    """Authors or name, with the arXiv id."""
    status: ClassVar[str] = ""
    """One phrase for the table of systems."""
    Config: ClassVar[type[BaseModel]]

    @abstractmethod
    def run(self, config: C, lab: Lab) -> Findings:
        """Run the method. On Ctrl-C return what is known, ``complete=False``, or let it pass."""

    @abstractmethod
    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Measure the method on planted models; ``trials`` overrides the study's own number."""

    def inputs(self, config: C, lab: Lab) -> Mapping[str, str]:
        """What a run would depend on now, as in `Findings.inputs`; here the weights of ``config.model``."""
        spec = getattr(config, "model", None)
        if spec is None:
            return {}
        model = lab.model(spec, getattr(config, "dtype", "auto"))
        return {f"weights:{model.name}": model.fingerprint}


S = TypeVar("S", bound=type[Study[Any]])


def study(cls: S) -> S:
    """Register a study class. RuntimeError when its id is taken or malformed, or its config is not strict."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.id):
        raise RuntimeError(f"{cls}: id {cls.id!r} is not kebab-case")
    settings = cls.Config.model_config
    if not settings.get("frozen") or settings.get("extra") != "forbid":
        raise RuntimeError(f"{cls}: Config must be frozen and forbid extras; use StudyConfig")
    if cls.id in _registry:
        raise RuntimeError(f"study id {cls.id!r} is registered by {type(_registry[cls.id])} and {cls}")
    _registry[cls.id] = cls()
    return cls


def studies() -> Mapping[str, Study[Any]]:
    """Every registered study by id, after importing each ``cutaway.<room>.<paper>.study``."""
    _imported("*")
    return dict(sorted(_registry.items()))


def get_study(id: str) -> Study[Any]:
    """The study called ``id``; UsageError with the nearest id when there is none."""
    # Its folder carries its name, so the other studies need not be imported.
    folder = id.replace("-", "_")
    if folder.isidentifier():
        _imported(folder)
    if id not in _registry:
        raise UsageError(f"no study {id!r}{nearest(id, studies())}")
    return _registry[id]


def _imported(folder: str) -> None:
    root = Path(__file__).parent
    for path in sorted(root.glob(f"*/{folder}/study.py")):
        importlib.import_module(".".join(["cutaway", *path.relative_to(root).with_suffix("").parts]))


def parse_config(study: Study[C], settings: Mapping[str, str]) -> C:
    """Build a study's config from ``key=value`` strings.

    A value is taken as its field's type reads it (``3``, ``0.5``, ``true``, plain text), else as JSON
    (``[1, 2]``); a field of several values also takes them with commas (``1,2``); ``null`` is None where the field
    allows it. UsageError names the field and the value.
    """
    fields = study.Config.model_fields
    for key, text in settings.items():
        if key not in fields:
            raise UsageError(f"{key}={text}: {study.id} has no setting {key!r}{nearest(key, fields)}")
    read = {key: _listed(text) if _holds_several(fields[key]) else text for key, text in settings.items()}
    first = {key: None if value == "null" else value for key, value in read.items()}
    try:
        return study.Config.model_validate(first)  # type: ignore[return-value]
    except ValidationError as error:
        refused = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
    second = first | {
        key: _from_json(value) for key, value in read.items() if key in refused and isinstance(value, str)
    }
    try:
        return study.Config.model_validate(second)  # type: ignore[return-value]
    except ValidationError as error:
        raise UsageError(f"{study.id}: {_one_line(error, settings)}") from None


def paper_table(studies: Iterable[Study[Any]]) -> str:
    """Markdown table of systems: id, title, paper (arXiv ids linked), status."""
    rows = ["| study | what it does | paper | status |", "|---|---|---|---|"]
    for each in studies:
        paper = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", each.paper)
        cells = (cell.replace("|", r"\|") for cell in (f"`{each.id}`", each.title, paper, each.status))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)


def _holds_several(field: FieldInfo) -> bool:
    return get_origin(field.annotation) in (tuple, list)


def _listed(text: str) -> str | list[str]:
    if text == "null" or text.lstrip().startswith("["):
        return text
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _from_json(text: str) -> Any:
    try:
        return text if text == "null" else json.loads(text)
    except json.JSONDecodeError:
        return text


def _one_line(error: ValidationError, settings: Mapping[str, str]) -> str:
    parts = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        key = str(item["loc"][0]) if item["loc"] else ""
        given = f"{key}={settings[key]}: " if key in settings else f"{key}: " if key else ""
        parts.append(given + message[:1].lower() + message[1:])
    return "; ".join(" ".join(part.split()) for part in parts)
