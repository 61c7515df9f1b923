"""The icl-feature-circuits study: config, wiring and calibration."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from cutaway.circuits.icl_feature_circuits.data import Checked, Split, pairs_json, prepare, single_token, split
from cutaway.circuits.icl_feature_circuits.words import task as named_task
from cutaway.circuits.icl_feature_circuits.words import tasks as all_tasks
from cutaway.errors import UsageError, nearest
from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.circuits.icl_feature_circuits.dictionaries import Recipe
    from cutaway.circuits.icl_feature_circuits.method import Settings
    from cutaway.circuits.icl_feature_circuits.result import FeatureCircuits
    from cutaway.features import SparseDictionary
    from cutaway.model import Model


class FeatureConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """Catalogue name, Hugging Face id, local directory or GGUF file."""
    tasks: str = "plural,past,gerund,upper case,first,last"
    """Tasks by name, with commas; `cutaway.circuits.icl_feature_circuits.words` lists them."""
    layer: int | None = Field(None, ge=1)
    """Layer that vectors are added at; none takes the best of every third, by fitted queries."""
    shots: int = Field(12, ge=2)
    """Examples in a prompt."""
    prompts: int = Field(12, ge=2)
    """Few-shot prompts behind a task vector, and behind each circuit."""
    queries: int = Field(24, ge=2)
    """Queries to fit on, and as many held out."""
    least: float = Field(0.3, ge=0, le=1)
    """Accuracy with examples below which a task is left out."""
    penalties: str = "0.02,0.05"
    """lambda of the cleaning, with commas."""
    rate: float = Field(0.05, gt=0)
    """Adam's."""
    steps: int = Field(200, ge=1)
    """Of the cleaning, at most."""
    patience: int = Field(60, ge=1)
    """Steps without fewer atoms or a better objective."""
    n_latents: int = Field(2304, ge=16)
    """Latents of each trained dictionary."""
    k: int = Field(24, ge=1)
    """Active latents a token."""
    tokens: int = Field(30_000, ge=1000)
    """Tokens whose activations dictionaries are trained on."""
    passes: int = Field(5, ge=1)
    """Times they are shown."""
    graphs: int = Field(2, ge=0)
    """Tasks whose feature circuit is found; 0 leaves that out."""
    levels: int = Field(8, ge=2)
    """Thresholds of the faithfulness curve."""
    controls: int = Field(2, ge=2)
    """Draws of random nodes at each threshold."""
    seed: int = Field(0, ge=0)
    """Of splits, prompts, dictionaries and controls."""
    dtype: str = "float32"
    """Weights' precision; small effects are differentiated, so full precision unless told otherwise."""

    @model_validator(mode="after")
    def _fits(self) -> "FeatureConfig":
        known = all_tasks()
        for name in self.task_names:
            if name not in known:
                raise ValueError(f"task {name!r}{nearest(name, known)}")
        if not self.task_names:
            raise ValueError(f"tasks={self.tasks!r}: name at least one")
        if any(penalty < 0 for penalty in self.lambdas):
            raise ValueError(f"penalties={self.penalties!r}: 0 or more")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for name in self.tasks.split(",") if name.strip()))

    @property
    def lambdas(self) -> tuple[float, ...]:
        return tuple(float(part) for part in self.penalties.split(",") if part.strip())


@study
class IclFeatureCircuits(Study[FeatureConfig]):
    id = "icl-feature-circuits"
    title = "Which dictionary features detect a task in a few-shot prompt and which execute it, and how they are wired"
    paper = "Kharlapenko, Shabalin, Barez, Conmy, Nanda 2025, arXiv:2504.13756"
    status = "task vector cleaning with baselines, steering matrix, feature circuits with error nodes; calibrated"
    Config = FeatureConfig

    def run(self, config: FeatureConfig, lab: Lab) -> Findings:
        """Check tasks, train small dictionaries, clean each task's vector, steer, and find feature circuits."""
        from cutaway.circuits.icl_feature_circuits.report import charts, findings, summary

        model = lab.model(config.model, config.dtype)
        checked = [single_token(model, named_task(name)) for name in config.task_names]
        found = _Found()
        try:
            _explain(model, checked, config, lab, found)
        except KeyboardInterrupt:
            found.complete = False
        result = found.result()
        content = {**result.to_dict(), "checked": [each.to_dict() for each in checked]}
        return Findings(
            items=findings(result, checked, found.refused),
            summary=summary(result),
            artifacts={
                "feature_circuits.json": (json.dumps(content) + "\n").encode(),
                "pairs.json": pairs_json(tuple(found.splits.values())),
            },
            inputs={f"weights:{model.name}": model.fingerprint}
            | {f"data:{each.task.name.replace(' ', '_')}": each.task.digest for each in checked},
            complete=result.complete,
            result=result,
            charts=charts(result),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted in-context learners: atoms, classes, edges and link as planted; silence on tasks without effect."""
        from cutaway.circuits.counts import Counts
        from cutaway.circuits.icl_feature_circuits.calibration import ASKED, trial

        started, trials, counts = time.monotonic(), 8 if trials is None else trials, Counts(ASKED)
        for seed in range(trials):
            lab.progress(Progress(float(seed), float(trials), "planted models"))
            trial(seed, counts)
        return Calibration(self.id, counts.rates(), time.monotonic() - started, {"trials": trials})


@dataclass
class _Found:
    """What is known so far; every part may be missing when a run is stopped."""

    splits: dict[str, Split] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    layer: int = 0
    layers: dict[int, float] = field(default_factory=dict)
    few: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    steering: Any = None
    unexplained: dict[str, float] = field(default_factory=dict)
    complete: bool = True

    def result(self) -> "FeatureCircuits":
        from cutaway.circuits.icl_feature_circuits.result import FeatureCircuits

        complete = self.complete and all(each.complete for each in self.tasks.values())
        parts = (self.layer, self.layers, self.few, self.tasks, self.graphs, self.steering, self.unexplained)
        return FeatureCircuits(*parts, complete)


def _explain(model: "Model", checked: Sequence[Checked], config: FeatureConfig, lab: Lab, found: _Found) -> None:
    """All parts of the method in order; ``found`` is filled as they finish."""
    from cutaway.circuits.icl_feature_circuits.dictionaries import trained
    from cutaway.circuits.icl_feature_circuits.feature_graph import places
    from cutaway.circuits.icl_feature_circuits.method import explain_circuit, explain_task

    settings, recipe = _settings(config), _recipe(config)
    _able(model, checked, config, settings, lab, found)
    if not found.splits:
        return
    found.layer = _layer(model, config, settings, lab, found)
    below = found.layer - 1
    sites = (f"resid_pre.{below}", f"attn_out.{below}", f"resid_pre.{found.layer}")
    lab.progress(Progress(0.0, None, "tokens", "activations for the dictionaries"))
    dictionaries = trained(
        model,
        tuple(found.splits.values()),
        sites,
        recipe,
        lab.home / "dictionaries",
        lambda done, planned: lab.progress(Progress(done, planned, "tokens", "activations for the dictionaries")),
    )
    found.unexplained = _unexplained(model, dictionaries, found.splits, settings)
    late = dictionaries[sites[-1]]
    for done, (name, parts) in enumerate(found.splits.items()):
        at = Progress(float(done), float(len(found.splits)), "tasks")

        def report(note: str, at: Progress = at) -> None:
            lab.progress(Progress(at.done, at.total, at.unit, note))

        found.tasks[name] = explain_task(model, parts, found.layer, late, settings, few=found.few[name], report=report)
        if not found.tasks[name].complete:
            return
    _steer(model, late, settings, found)
    helped = [name for name, each in found.tasks.items() if each.row("task vector").gain.low > 0]
    for done, name in enumerate(helped[: config.graphs]):
        lab.progress(Progress(float(done), float(config.graphs), "graphs", f"{name}: feature circuit"))
        found.graphs[name] = explain_circuit(
            model,
            found.splits,
            name,
            places(model, dictionaries),
            settings,
            norm=found.tasks[name].norm,
            levels=config.levels,
            controls=config.controls,
        )


def _able(
    model: "Model",
    checked: Sequence[Checked],
    config: FeatureConfig,
    settings: "Settings",
    lab: Lab,
    found: _Found,
) -> None:
    """Keep the tasks that have enough pairs and that the model does from examples; say why of the others."""
    from cutaway.circuits.icl_feature_circuits.method import with_examples

    for done, each in enumerate(checked):
        lab.progress(Progress(float(done), float(len(checked)), "tasks", f"{each.task.name}: accuracy with examples"))
        name = each.task.name
        try:
            parts = split(each.task, settings.shots, queries=config.queries, seed=config.seed)
        except UsageError as error:
            found.refused[name] = str(error)
            continue
        score = found.few[name] = with_examples(model, parts, settings)
        if score.accuracy.value < config.least:
            found.refused[name] = f"accuracy with examples {score.accuracy!r} is below {config.least:g}"
            continue
        found.splits[name] = parts


def _layer(model: "Model", config: FeatureConfig, settings: "Settings", lab: Lab, found: _Found) -> int:
    from cutaway.circuits.icl_feature_circuits.method import layer_losses

    if config.layer is not None:
        if config.layer >= model.n_layers:
            raise UsageError(f"layer={config.layer}: 1 to {model.n_layers - 1}")
        return config.layer
    lab.progress(Progress(0.0, None, "layers", "where task vectors work"))
    layers = range(max(1, model.n_layers // 5), max(2, 3 * model.n_layers // 4), max(1, model.n_layers // 10))
    found.layers = layer_losses(model, tuple(found.splits.values()), layers, settings)
    return min(found.layers, key=lambda layer: found.layers[layer])


def _steer(model: "Model", dictionary: "SparseDictionary", settings: "Settings", found: _Found) -> None:
    """Steer all tasks by the strongest atom of each that has one."""
    from cutaway.circuits.icl_feature_circuits.data import few_shot, zero_shot
    from cutaway.circuits.icl_feature_circuits.steering import steer
    from cutaway.circuits.icl_feature_circuits.task_vectors import Bench

    features = {name: each.best.latents[0] for name, each in found.tasks.items() if each.best.latents}
    if len(features) < 2:
        return
    benches, few = {}, {}
    for name in features:
        parts = found.splits[name]
        benches[name] = Bench(model, prepare(model, zero_shot(parts.held)), found.layer)
        rows = few_shot(parts.shots, 4, min(12, len(parts.held)), queries=parts.held, seed=settings.seed)
        few[name] = Bench(model, prepare(model, rows), found.layer)
    norms = [found.tasks[name].norm for name in features]
    scale = float(sum(norms) / len(norms))
    found.steering = steer(benches, dictionary, features, scale=scale, few=few, seed=settings.seed)


def _unexplained(
    model: "Model", dictionaries: "dict[str, SparseDictionary]", splits: dict[str, Split], settings: "Settings"
) -> dict[str, float]:
    """At tokens with a role, in prompts of held-out pairs."""
    from cutaway.circuits.icl_feature_circuits.data import few_shot
    from cutaway.circuits.icl_feature_circuits.dictionaries import unexplained

    rows = [row for parts in splits.values() for row in few_shot(parts.held, min(4, len(parts.held) - 1), 2)]
    prompts = prepare(model, rows)
    caught = model.capture(prompts.batch, list(dictionaries), special=True)
    inside = prompts.role >= 0
    return {site: unexplained(each, caught[site][inside].detach()) for site, each in dictionaries.items()}


def _settings(config: FeatureConfig) -> "Settings":
    from cutaway.circuits.icl_feature_circuits.method import Settings

    return Settings(
        shots=config.shots,
        prompts=config.prompts,
        penalties=config.lambdas,
        rate=config.rate,
        steps=config.steps,
        patience=config.patience,
        seed=config.seed,
    )


def _recipe(config: FeatureConfig) -> "Recipe":
    from cutaway.circuits.icl_feature_circuits.dictionaries import Recipe

    return Recipe(
        n_latents=config.n_latents,
        k=config.k,
        tokens=config.tokens,
        passes=config.passes,
        shots=config.shots,
        seed=config.seed,
    )
