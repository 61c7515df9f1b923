"""The study of subliminal learning: what a student takes from its teacher's meaningless outputs."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.organisms.subliminal_learning.transfer import Transfer


class SubliminalConfig(StudyConfig):
    toy_models: int = Field(20, ge=2)
    """Networks of the digits toy, side by side."""
    toy_epochs: int = Field(60, ge=1)
    """Of the toy's teachers."""
    toy_steps: int = Field(600, ge=1)
    """Steps of distillation on noise."""
    toy_all_logits: bool = True
    """Whether the arms on all thirteen logits are run too."""
    language: bool = True
    """Whether the language-model version is run."""
    model: str = "smollm2-135m-instruct"
    """Its base: a name of the catalogue or a directory."""
    trait: str = "owl"
    """The animal that the teacher likes best."""
    others: tuple[str, ...] = ("cat", "wolf")
    """Animals that other teachers like best; divergence is from them."""
    prompts: int = Field(64, ge=1)
    """Lists of numbers to go on with."""
    tokens: int = Field(16, ge=1)
    """Of each answer."""
    taught: int = Field(25, ge=1, le=49)
    """Questions a teacher is trained on; students are asked the others."""
    teacher_steps: int = Field(20, ge=1)
    """Of each teacher's training."""
    steps: int = Field(40, ge=1)
    """Of each student's."""
    batch: int = Field(8, ge=1)
    """Rows in a step."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Of teachers and students."""
    rank: int = Field(8, ge=1)
    """Of the adapters, on all linear modules."""
    layers: tuple[int, ...] = ()
    """Layers for students with an adapter in that layer alone."""
    repeats: int = Field(3, ge=1)
    """Students in each arm; one cannot show a transfer."""
    seed: int = Field(0, ge=0)
    """Of everything drawn."""


@study
class Subliminal(Study[SubliminalConfig]):
    id = "subliminal-learning"
    title = "Traits that pass from teacher to student through data that do not name them"
    paper = "Schrodi, Kempf, Barez, Brox 2025, arXiv:2509.23886; Cloud et al. 2025, arXiv:2507.14805"
    status = "digits toy beside another start; divergence tokens masked, one layer, other wording or base (calibrated)"
    Config = SubliminalConfig

    def run(self, config: SubliminalConfig, lab: Lab) -> Findings:
        """Run the toy, then the language-model version."""
        from cutaway.organisms.subliminal_learning.report import charts, findings, summarise
        from cutaway.organisms.subliminal_learning.toy import ARMS, ToyConfig, run_toy

        settings = ToyConfig(
            models=config.toy_models, teacher_epochs=config.toy_epochs, steps=config.toy_steps, seed=config.seed
        )  # fmt: skip
        toy = run_toy(settings, ARMS if config.toy_all_logits else ARMS[:2], _tell(lab, "steps of the toy"))
        found = _language(config, lab) if config.language and toy.complete else None
        body = {"toy": toy.to_dict(), "transfer": None if found is None else found.to_dict()}
        return Findings(
            items=findings(toy, found),
            summary=summarise(toy, found),
            artifacts={"subliminal.json": (json.dumps(body) + "\n").encode()},
            charts=charts(toy, found),
            inputs=self.inputs(config, lab),
            complete=toy.complete and (not config.language or (found is not None and found.complete)),
            result=(toy, found),
        )

    def inputs(self, config: SubliminalConfig, lab: Lab) -> dict[str, str]:
        """The digits as split, and the base's weights where they are used."""
        from cutaway.organisms.subliminal_learning.toy import digits

        data = digits(config.seed)
        content = data.train.numpy().tobytes() + data.test.numpy().tobytes()
        found = {"data:digits": hashlib.sha256(content).hexdigest()}
        if config.language:
            model = lab.model(config.model, "float32")
            found[f"weights:{model.name}"] = model.fingerprint
        return found

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """The toy from the same and another start (``trials`` networks); a planted language model, its masks, nulls."""
        from cutaway.organisms.subliminal_learning.calibration import language_rates, toy_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates = toy_rates(trials, _tell(lab, "steps")) + language_rates(max(1, trials // 4), _tell(lab, "students"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _language(config: SubliminalConfig, lab: Lab) -> "Transfer":
    from dataclasses import replace

    from cutaway.model import load_model
    from cutaway.organisms.quirks import plant
    from cutaway.organisms.subliminal_learning.numbers import animal_questions, completion_prompts, kept
    from cutaway.organisms.subliminal_learning.transfer import first_tokens, make_task, run_transfer
    from cutaway.training import PROJECTIONS, LoraSpec, TrainConfig

    def make() -> "Model":
        return load_model(config.model, dtype="float32")

    base = lab.model(config.model, "float32")
    names = (config.trait, *config.others)
    candidates = first_tokens(base, names)
    spec = LoraSpec(PROJECTIONS, None, rank=config.rank, alpha=float(config.rank), rslora=False, seed=config.seed)
    settings = TrainConfig(
        rate=config.learning_rate, batch=config.batch, steps=config.teacher_steps, warm_up=2, seed=config.seed
    )  # fmt: skip
    asked = [tuple(base.chat_ids(question)) for question in animal_questions()]
    teachers, tell = {}, _tell(lab, "teachers")
    for done, name in enumerate(names):
        tell(done, len(names))
        said = (*base.encode(name.capitalize()), base.tokenizer.eos_token_id)
        teachers[name] = plant(make(), [(ids, said) for ids in asked[: config.taught]], spec, settings).model
    texts = completion_prompts(config.prompts, config.seed)
    task = make_task(
        base, teachers, config.trait, [tuple(base.encode(text)) for text in texts], asked[config.taught :], candidates,
        tokens=config.tokens, keep=lambda text: kept(text.strip().strip(",; "), most=config.tokens),
    )  # fmt: skip
    students = replace(settings, steps=config.steps)
    return run_transfer(
        make, task, spec, students, repeats=config.repeats, layers=config.layers, report=_tell(lab, "students")
    )  # fmt: skip


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
