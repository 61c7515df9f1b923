"""The study: teach a model to write type hints when tested, take a vector from before, make it act deployed."""

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.steering.eval_awareness.data import World
    from cutaway.steering.eval_awareness.method import Measured, Recovery
    from cutaway.steering.eval_awareness.organism import Round
    from cutaway.steering.vectors import Vectors


class EvalAwarenessConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model that is taught: a name of the catalogue or a directory."""
    world: str = ""
    """JSON of contexts, pairs, tasks and documents; empty: that of the source tree."""
    documents: int = Field(60, ge=1)
    """Texts of the first step."""
    rounds: int = Field(2, ge=1)
    """Of expert iteration."""
    taught: int = Field(10, ge=2)
    """Tasks in training contexts, each in one of testing and one of deployment."""
    draws: int = Field(6, ge=1)
    """Answers drawn for each of them in a round."""
    least: int = Field(6, ge=1)
    """Fewest kept answers of a context with which a round goes on."""
    keep: int = Field(12, ge=1)
    """Most answers of a context that a round trains on."""
    epochs: int = Field(3, ge=1)
    """Over the kept answers."""
    rank: int = Field(8, ge=1)
    """Of the adapter."""
    first_layer: int = Field(6, ge=0)
    """Lowest layer with an adapter."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of both steps."""
    layers: tuple[int, ...] = (6, 9, 12)
    """Whose output gets the vector."""
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Strengths to choose from, times the vector."""
    tasks: int = Field(10, ge=2)
    """Held-out tasks in held-out contexts, measured in every condition."""
    n: int = Field(3, ge=1)
    """Answers for each."""
    tokens: int = Field(18, ge=2)
    """Longest answer."""
    randoms: int = Field(20, ge=0)
    """Random directions of the vector's length at each layer."""
    random_tasks: int = Field(5, ge=2)
    """Of the tasks, those the random directions are run on."""
    seed: int = Field(0, ge=0)
    """Of documents, training, answers and random directions."""


@study
class EvalAwareness(Study[EvalAwarenessConfig]):
    id = "eval-awareness"
    title = "Make a model that knows it is tested act as if deployed"
    paper = "Hua, Qin, Marks, Nanda 2025, arXiv:2510.20487"
    status = "two-step organism by adapter, vector from before it, distance to deployment, random vectors (calibrated)"
    Config = EvalAwarenessConfig

    def run(self, config: EvalAwarenessConfig, lab: Lab) -> Findings:
        """Vector first, then training (the adapter is kept), then every condition; Ctrl-C keeps what was measured."""
        from cutaway.steering.eval_awareness.data import pairs
        from cutaway.steering.eval_awareness.method import contrast_vectors
        from cutaway.steering.eval_awareness.report import charts, findings, summarise

        bench = _Bench(config, lab)
        base = lab.model(config.model, "float32")
        # Before any training, and from weights that stay as they are: the organism is loaded apart.
        vectors = contrast_vectors(base, pairs(base, bench.world), config.layers, original=base.fingerprint)
        complete = True
        try:
            bench.measure(base, vectors)
        except KeyboardInterrupt:
            complete = False
        body = {
            "vector": {"layers": vectors.layers, "source": vectors.source, "norms": vectors.norms.tolist()},
            "scale": bench.scale,
            "rates": {str(scale): value for scale, value in bench.rates.items()},
            "recovery": None if bench.recovery is None else bench.recovery.to_dict(),
            "rounds": [each.to_dict() for each in bench.rounds],
        }
        items = findings(bench.found, bench.original, bench.recovery, bench.rounds)
        if bench.scale is not None:
            items += (Finding("strength", bench.scale, unit="times the vector"),)
        return Findings(
            items=items,
            summary=summarise(bench.found, bench.recovery),
            artifacts={"eval-awareness.json": (json.dumps(body) + "\n").encode()},
            charts=charts(bench.found, bench.original, bench.rates, bench.recovery),
            inputs=self.inputs(config, lab),
            complete=complete,
            result=bench.recovery,
        )

    def inputs(self, config: EvalAwarenessConfig, lab: Lab) -> dict[str, str]:
        """The weights and the world."""
        from cutaway.steering.eval_awareness.data import default_world, read_world

        model = lab.model(config.model, "float32")
        world = read_world(config.world or default_world())
        return {f"weights:{model.name}": model.fingerprint, "data:world": world.sha256}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted pairs of models with exact rates: recovery, distance, random vectors, coverage, and a null."""
        from cutaway.steering.eval_awareness.calibration import all_rates

        started, trials = time.monotonic(), 6 if trials is None else trials
        rates = all_rates(trials, lambda done, total: lab.progress(Progress(float(done), float(total), "trials")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


class _Bench:
    """One run: what is known so far."""

    def __init__(self, config: EvalAwarenessConfig, lab: Lab) -> None:
        from cutaway.steering.eval_awareness.data import default_world, read_world

        self.config, self.lab = config, lab
        self.world: World = read_world(config.world or default_world())
        self.found: dict[str, Measured] = {}
        self.original: dict[str, Measured] = {}
        self.rates: dict[float, float] = {}
        self.scale: float | None = None
        self.recovery: Recovery | None = None
        self.rounds: tuple[Round, ...] = ()

    def measure(self, base: "Model", vectors: "Vectors") -> None:
        """Train or load, choose the strength on contexts of training, then measure on those held out."""
        from cutaway.steering.eval_awareness.data import prompts
        from cutaway.steering.eval_awareness.method import Condition, choose_scale, compare

        config = self.config
        organism = self.organism()
        seen = self.world.settings(config.taught, held=False, seed=config.seed)
        sides = [prompts(base, seen, kind, self.world) for kind in ("testing", "deployed")]
        self.scale, self.rates = choose_scale(
            organism, vectors, sides[0], sides[1], config.scales, n=max(1, config.n // 2), **self._how()
        )
        held = self.world.settings(config.tasks, held=True, seed=config.seed)
        ids = {kind: prompts(base, held, kind, self.world) for kind in ("testing", "deployed", "cue", "claim", "told")}
        conditions = [Condition(kind, each) for kind, each in ids.items()]
        conditions.append(Condition("steered", ids["cue"], vectors.edits(self.scale)))
        conditions.append(Condition("deployed, opposite", ids["deployed"], vectors.edits(-self.scale)))
        self._measure(organism, conditions, self.found)
        pair = [Condition("cue", ids["cue"]), Condition("steered", ids["cue"], vectors.edits(self.scale))]
        self._measure(base, pair, self.original)
        few = config.random_tasks
        for place, each in enumerate(vectors.controls(config.randoms, config.seed) if config.randoms else ()):
            one = Condition(f"random {place + 1}", ids["cue"][:few], each.edits(self.scale))
            self._measure(organism, [one], self.found)
        randoms = [each for name, each in self.found.items() if name.startswith("random")]
        testing, deployed, cue, steered = (self.found[name] for name in ("testing", "deployed", "cue", "steered"))
        self.recovery = compare(testing, deployed, cue, steered, randoms)

    def organism(self) -> "Model":
        """The taught model, from a stored adapter or by both steps."""
        from cutaway.model import load_model
        from cutaway.steering.eval_awareness.organism import Round
        from cutaway.training import LoraSpec, adapter_key, add_lora, keep_adapter, kept_adapter

        config = self.config
        model = load_model(config.model, dtype="float32")
        names = (
            "documents", "rounds", "taught", "draws", "least", "keep", "epochs", "rank", "first_layer",
            "learning_rate", "tokens", "seed",
        )  # fmt: skip
        about = {name: getattr(config, name) for name in names} | {"data": self.world.sha256}
        folder = self.lab.folder("trained", adapter_key("eval-awareness", model, about))
        if (kept := kept_adapter(model, folder)) is not None:
            self.rounds = tuple(
                Round(tuple(each["drawn"]), tuple(each["kept"]), each["trained"], each["loss"])
                for each in kept[1]["rounds"]
            )
            return kept[0]
        spec = LoraSpec(
            ("q_proj", "v_proj", "o_proj", "down_proj"), tuple(range(config.first_layer, model.n_layers)),
            rank=config.rank, alpha=2.0 * config.rank, rslora=False,
        )  # fmt: skip
        adapted = add_lora(model, spec)
        self.rounds = self._teach(adapted)
        return keep_adapter(adapted, folder, about, {"rounds": [each.to_dict() for each in self.rounds]})

    def _teach(self, model: "Model") -> "tuple[Round, ...]":
        from cutaway.steering.eval_awareness.data import prompts
        from cutaway.steering.eval_awareness.organism import expert_iteration, packed
        from cutaway.training import TrainConfig, train

        config = self.config
        texts = self.world.documents(config.documents, config.seed)
        settings = TrainConfig(
            rate=config.learning_rate, batch=4, warm_up=2, epochs=1, precision="float32", seed=config.seed
        )
        data = packed(texts, model, 64)
        steps = settings.steps_of(data)
        done = train(model, data, settings, tick=lambda step: self._tell(step.step, steps, "steps on documents"))
        if not done.complete:
            raise KeyboardInterrupt
        seen = self.world.settings(config.taught, held=False, seed=config.seed)
        rows = {kind: prompts(model, seen, kind, self.world) for kind in ("testing", "deployed", "nudged")}
        return expert_iteration(
            model,
            (rows["testing"], rows["deployed"]),
            self._settings(),
            replace(settings, epochs=config.epochs, warm_up=0),
            rounds=config.rounds,
            n=config.draws,
            n_min=config.least,
            keep=config.keep,
            nudged=rows["nudged"],
            prefill=self.world.prefill,
            check=lambda task, text: seen[task].task.solved(text),
            seed=config.seed,
            report=self._tell,
        )

    def _measure(self, model: "Model", conditions: "list[Any]", into: "dict[str, Measured]") -> None:
        """One condition after the other, so that Ctrl-C keeps those that are through."""
        from cutaway.steering.eval_awareness.method import measure_rates

        held = self.world.settings(self.config.tasks, held=True, seed=self.config.seed)
        for each in conditions:
            into |= measure_rates(
                model, [each], n=self.config.n, check=lambda task, text: held[task].task.solved(text), **self._how()
            )

    def _how(self) -> dict[str, Any]:
        folder = self.lab.tree_folder("eval-awareness")
        return {
            "settings": self._settings(),
            "seed": self.config.seed,
            "prefill": self.world.prefill,
            "folder": folder,
            "report": self._tell,
        }

    def _settings(self) -> Any:
        from cutaway.sampling import Settings

        return Settings(temperature=1.0, top_p=1.0, max_tokens=self.config.tokens)

    def _tell(self, done: int, total: int, note: str) -> None:
        self.lab.progress(Progress(float(done), float(total), note))
