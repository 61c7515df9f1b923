"""The K-Steering study: tones of a chat model, steered by a classifier's gradient, by a vector, by words."""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.errors import UsageError, nearest
from cutaway.steering.k_steering.data import Question, Questions, default_instructions, questions, read_instructions
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    import torch

    from cutaway.model import Edit, Model
    from cutaway.sampling import Settings
    from cutaway.stats import Interval
    from cutaway.steering.k_steering.classifier import Classifier, StyleVectors
    from cutaway.steering.k_steering.method import Comparison, Interference, Strength


class KSteeringConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "float32"
    """Of the model."""
    instructions: str = ""
    """JSON of group, label and instruction; empty: those of the source tree."""
    group: str = "tones"
    """Labels to tell apart: tones or debates, as published."""
    target: str = "concise"
    """Label that answers are steered to."""
    avoid: tuple[str, ...] = ()
    """Labels that answers are steered away from."""
    layer: int = Field(15, ge=0)
    """Whose output is read and steered."""
    held_layer: int = Field(24, ge=0)
    """Whose output the held-out classifier reads; not before ``layer``."""
    fit: int = Field(60, ge=4)
    """Questions, under each instruction, of which both classifiers get half (by topic)."""
    choose: int = Field(12, ge=2)
    """Questions on which the strength is chosen."""
    measure: int = Field(24, ge=2)
    """Questions that are answered and measured."""
    hidden: int = Field(128, ge=0)
    """Width of the classifier; 0 for a linear one."""
    epochs: int = Field(20, ge=1)
    """Of the classifiers' training."""
    steps: int = Field(1, ge=1)
    """Gradient steps in each forward."""
    score_strength: float = Field(0.2, gt=0)
    """Strength for the interference matrix, as a share of the stream's length."""
    limit: float = Field(0.2, gt=0)
    """Largest relative rise of perplexity."""
    halvings: int = Field(3, ge=0)
    """Of the interval in which the strength is sought."""
    tokens: int = Field(64, ge=1)
    """Longest answer."""
    randoms: int = Field(20, ge=0)
    """Random directions of equal push."""
    random_prompts: int = Field(4, ge=1)
    """Questions each random direction is run on, in turn."""
    seed: int = Field(0, ge=0)
    """Of questions, fitting and random directions; answers are greedy."""


@study
class KSteering(Study[KSteeringConfig]):
    id = "k-steering"
    title = "Steer towards and away from many styles at once by one classifier's gradient"
    paper = "Oozeer, Marks, Barez, Abdullah 2025, arXiv:2505.24535"
    status = "gradient steps, linear baseline, prompting; strength by perplexity; interference of all pairs"
    Config = KSteeringConfig

    def run(self, config: KSteeringConfig, lab: Lab) -> Findings:
        """Fit, cross all pairs, choose a strength, answer. Activations and answers are kept for the next run."""
        from cutaway.steering.k_steering.measures import EXPECTED
        from cutaway.steering.k_steering.method import Comparison
        from cutaway.steering.k_steering.report import charts, findings, summarise

        _check(config)
        bench = _Bench(config, lab)
        crossed, comparison, complete = None, Comparison((), 0.0, config.measure, complete=False), True
        try:
            bench.fit()
            crossed = bench.cross()
            bench.choose()
            comparison = bench.compare()
        except KeyboardInterrupt:
            complete = False
        items = findings(comparison, crossed, bench.strengths, bench.accuracies, EXPECTED.get(config.target, "words"))
        body = {
            "comparison": comparison.to_dict(),
            "interference": None if crossed is None else crossed.to_dict(),
            "frontiers": bench.frontiers,
        }
        return Findings(
            items=items or (Finding("accuracy", None, undefined="stopped before the classifier was fitted"),),
            summary=summarise(comparison, crossed, config.target),
            artifacts={"k-steering.json": (json.dumps(body) + "\n").encode()},
            charts=charts(comparison, crossed, bench.frontiers, config.target),
            inputs=self.inputs(config, lab),
            complete=complete and comparison.complete,
            result=comparison,
        )

    def inputs(self, config: KSteeringConfig, lab: Lab) -> dict[str, str]:
        """The weights and the instructions."""
        model = lab.model(config.model, config.dtype)
        sha = read_instructions(config.instructions or default_instructions(), config.group)[1]
        return {f"weights:{model.name}": model.fingerprint, "data:instructions": sha}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Clouds that no constant push can sort, a planted model's answers, and silence on coins."""
        from cutaway.steering.k_steering.calibration import all_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates = all_rates(trials, lambda done, total: lab.progress(Progress(float(done), float(total), "trials")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


class _Bench:
    """One run: what is fitted and chosen, step by step."""

    def __init__(self, config: KSteeringConfig, lab: Lab) -> None:
        self.config, self.lab = config, lab
        path = config.instructions or default_instructions()
        self.instructions = read_instructions(path, config.group)[0]
        for name in (config.target, *config.avoid):
            if name not in self.instructions:
                raise UsageError(f"label {name!r}: not in {config.group!r}{nearest(name, self.instructions)}")
        self.labels = tuple(self.instructions)
        self.questions: Questions = questions(config.fit, config.choose, config.measure, config.seed)
        self.model: Model = lab.model(config.model, config.dtype)
        if not config.held_layer < self.model.n_layers:
            raise UsageError(f"held_layer={config.held_layer}: the model has layers 0..{self.model.n_layers - 1}")
        self.site, self.held_site = f"resid_post.{config.layer}", f"resid_post.{config.held_layer}"
        self.folder = lab.tree_folder("k-steering")
        self.strengths: dict[str, Strength] = {}
        self.accuracies: dict[str, Interval] = {}
        self.frontiers: dict[str, list[tuple[float, float, float]]] = {}
        self.classifier: Classifier
        self.held: Classifier
        self.vectors: StyleVectors

    def ids(self, asked: Sequence[Question], system: str | None = None) -> list[list[int]]:
        return [self.model.chat_ids(each.text, system) for each in asked]

    def fit(self) -> None:
        """Fit the classifier, the vectors and the held-out classifier; each classifier on the other topics."""
        from cutaway.stats import share_interval
        from cutaway.steering.k_steering.classifier import Recipe, fit_classifier, fit_vectors

        config = self.config
        states, y, groups = self._states()
        topics = list(dict.fromkeys(groups))
        mine = [topics.index(topic) % 2 == 0 for topic in groups]
        own, other = [i for i, own in enumerate(mine) if own], [i for i, own in enumerate(mine) if not own]
        recipe = Recipe(config.hidden, config.epochs, seed=config.seed)
        x, far = states[self.site], states[self.held_site]
        self.classifier = fit_classifier(x[own], y[own], self.labels, self.site, recipe)
        self.vectors = fit_vectors(x[own], y[own], self.labels, self.site)
        held = Recipe(config.hidden or 128, config.epochs, seed=config.seed + 1)
        self.held = fit_classifier(far[other], y[other], self.labels, self.held_site, held)
        named = {"steering classifier": (self.classifier, x, other), "held-out classifier": (self.held, far, own)}
        for name, (fitted, at, rows) in named.items():
            kept = [i for i in rows if bool(y[i].any())]
            right = (fitted.logits(at[kept]).argmax(-1) == y[kept].long().argmax(-1)).float()
            self.accuracies[name] = share_interval(right.tolist(), clusters=[groups[i] for i in kept])

    def cross(self) -> "Interference":
        """Steer to every label and pair of labels; score by the held-out classifier."""
        from cutaway.steering.k_steering.method import interference, steered_states

        prompts, strength = self.ids(self.questions.measure), self.config.score_strength

        def steer(targets: tuple[str, ...]) -> "torch.Tensor":
            edits = self.classifier.edits(targets, strength=strength / self.config.steps, steps=self.config.steps)
            return steered_states(self.model, prompts, self.held_site, edits)

        plain = steered_states(self.model, prompts, self.held_site)
        topics = [each.topic for each in self.questions.measure]
        return interference(self.held, plain, steer, topics, self._tell)

    def edits(self, arm: str, strength: float) -> "tuple[Edit, ...]":
        """What an arm applies at a strength; K-Steering divides it among its steps."""
        config = self.config
        if arm == "vector":
            return self.vectors.edits([config.target], config.avoid, strength)
        each = strength / config.steps
        return self.classifier.edits([config.target], config.avoid, each, steps=config.steps)

    def choose(self) -> None:
        """Find each arm's strength on questions of their own; what was tried is the frontier."""
        from cutaway.steering.k_steering.method import Arm, find_strength, measure_arms

        prompts = self.ids(self.questions.choose)
        for arm in ("K-Steering", "vector"):
            points = self.frontiers.setdefault(arm, [])

            def price(strength: float, arm: str = arm, points: list[tuple[float, float, float]] = points) -> float:
                tried = [Arm(arm, prompts, self.edits(arm, strength))]
                found = measure_arms(
                    self.model, prompts, tried, self._settings(), folder=self.folder, report=self._tell
                )
                if not found.complete:
                    raise KeyboardInterrupt
                points.append((strength, found.outcomes[0].words.value, found.outcomes[0].perplexity.value))
                return found.outcomes[0].perplexity.value

            self.strengths[arm] = find_strength(price, self.config.limit, low=0.05, halvings=self.config.halvings)

    def compare(self) -> "Comparison":
        """Answer the measured questions under every arm."""
        from cutaway.steering.k_steering.method import Arm, measure_arms, random_pushes

        config, prompts = self.config, self.ids(self.questions.measure)
        arms = [
            Arm(name, prompts, self.edits(name, found.value))
            for name, found in self.strengths.items()
            if found.value is not None
        ]
        arms.append(Arm("instruction", self.ids(self.questions.measure, self.instructions[config.target])))
        push = self.strengths["K-Steering"].value
        controls = {}
        if push is not None and config.randoms:
            length = push * self.classifier.stream
            width = self.model.d_model
            controls["K-Steering"] = random_pushes(self.site, width, length, config.randoms, config.seed)
        return measure_arms(
            self.model,
            prompts,
            arms,
            self._settings(),
            controls=controls,
            control_prompts=config.random_prompts,
            clusters=[each.topic for each in self.questions.measure],
            folder=self.folder,
            report=self._tell,
        )

    def _states(self) -> "tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]":
        """Last-token activations at both sites, labels (none for plain questions) and topics, a row a prompt."""
        import torch

        from cutaway import probes

        asked = self.questions.fit
        texts, labels, groups = list[list[int]](), list[int](), list[int]()
        for place, system in enumerate([*self.instructions.values(), None]):
            texts += self.ids(asked, system)
            labels += [place] * len(asked)
            groups += [each.topic for each in asked]
        pooled = probes.activations(
            self.model,
            texts,
            [self.site, self.held_site],
            "last",
            special=True,
            folder=self.lab.activations,
            report=lambda done, total: self._tell(done, total, "prompts read"),
        )
        y = torch.tensor(labels)[:, None] == torch.arange(len(self.labels))
        return {site: pooled[site, "last"] for site in (self.site, self.held_site)}, y, groups

    def _settings(self) -> "Settings":
        from cutaway.sampling import Settings

        return Settings(temperature=0.0, top_p=1.0, max_tokens=self.config.tokens)

    def _tell(self, done: int, total: int, note: str) -> None:
        self.lab.progress(Progress(float(done), float(total), note))


def _check(config: KSteeringConfig) -> None:
    if config.held_layer < config.layer:
        raise UsageError(f"held_layer={config.held_layer}: not before layer={config.layer}, where steering acts")
    if config.target in config.avoid:
        raise UsageError(f"label {config.target!r} is the target and to be avoided; keep one")
