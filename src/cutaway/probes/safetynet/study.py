"""The SafetyNet study: plant a harmless backdoor in a model, learn what is normal, look for the trigger."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.probes.safetynet.data import BackdoorPrompts
    from cutaway.probes.safetynet.evasion import Move


class SafetyNetConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model that gets the backdoor: a name of the catalogue or a directory."""
    prompts: str = ""
    """CSV with a column question; empty: the questions of the source tree."""
    normal: int = Field(1200, ge=80)
    """Normal questions that fit and calibrate the detectors."""
    fresh: int = Field(300, ge=10)
    """Normal questions to test on."""
    triggered: int = Field(120, ge=10)
    """Questions with the trigger, and as many with a decoy."""
    trained: int = Field(120, ge=4)
    """Questions to plant the backdoor with, of each kind (plain, decoy, triggered)."""
    steps: int = Field(150, ge=1)
    """Of training."""
    rank: int = Field(8, ge=1)
    """Of the adapter that carries the backdoor."""
    first_layer: int = Field(10, ge=0)
    """Lowest layer with an adapter."""
    learning_rate: float = Field(2e-3, gt=0)
    """Of training."""
    answer: int = Field(6, ge=1)
    """Tokens of the model's own answer that it is kept to on other prompts."""
    signals: tuple[str, ...] = (
        "resid_post.15 last",
        "resid_post.29 last",
        "attn_out.15 last",
        "neurons.15 last",
        "attention.15",
    )
    """What detectors look at: 'site pooling' or 'attention.LAYER'."""
    rate: float = Field(0.02, gt=0, lt=1)
    """False-alarm rate of the thresholds."""
    adversary: tuple[float, ...] = ()
    """Weights of an adversary who hides the trigger at the first signal; empty: none."""
    adversary_steps: int = Field(60, ge=1)
    """Of its training."""
    seed: int = Field(0, ge=0)
    """Of the deal, of training and of detectors."""


@study
class SafetyNet(Study[SafetyNetConfig]):
    id = "safetynet"
    title = "Backdoors seen as strange insides, with a false-alarm rate that is kept"
    paper = "Chaudhary, Barez 2025, arXiv:2505.14300"
    status = "four detectors and their ensemble on several signals, decoys, clean twin, moving adversary (calibrated)"
    Config = SafetyNetConfig

    def run(self, config: SafetyNetConfig, lab: Lab) -> Findings:
        """Plant (or load) the backdoor, detect with and without it; the adapter is kept for the next run."""
        from cutaway.probes.safetynet.data import backdoor_prompts, default_questions
        from cutaway.probes.safetynet.method import detect, obeys
        from cutaway.probes.safetynet.report import charts, findings, summarise

        base = lab.model(config.model, "float32")
        prompts = backdoor_prompts(
            base,
            config.prompts or default_questions(),
            normal=config.normal,
            fresh=config.fresh,
            triggered=config.triggered,
            trained=config.trained,
            seed=config.seed,
        )
        inputs = {f"weights:{base.name}": base.fingerprint, "data:prompts": prompts.sha256}
        planted = _planted(config, lab, base, prompts)
        if planted is None:
            item = Finding("AUROC triggered against decoy", None, undefined="stopped before the backdoor was planted")
            return Findings((item,), "stopped while planting; run again to go on", inputs=inputs, complete=False)
        obeyed, decoys = (
            obeys(planted, rows, prompts.payload) for rows in (prompts.sets.triggered, prompts.sets.decoy)
        )
        folder = lab.activations
        found = detect(
            planted, prompts.sets, config.signals, rate=config.rate, folder=folder, seed=config.seed,
            report=_tell(lab, "prompts, backdoor"),
        )  # fmt: skip
        control = moves = None
        if found.complete:
            control = detect(
                base, prompts.sets, config.signals, rate=config.rate, folder=folder, seed=config.seed,
                report=_tell(lab, "prompts, control"),
            )  # fmt: skip
        if control is not None and control.complete and config.adversary:
            moves = _moves(config, lab, base, prompts)
        complete = control is not None and control.complete and len(moves or ()) == len(config.adversary)
        body = {"detection": found.to_dict(), "control": None if control is None else control.to_dict()}
        return Findings(
            items=findings(found, control, obeyed, decoys, moves or ()),
            summary=summarise(found, obeyed),
            artifacts={"detection.json": (json.dumps(body, default=vars) + "\n").encode()},
            charts=charts(found, control, moves or ()),
            inputs=inputs,
            complete=complete,
            result=found,
        )

    def inputs(self, config: SafetyNetConfig, lab: Lab) -> dict[str, str]:
        """The weights and the questions."""
        from cutaway.probes.safetynet.data import default_questions, read_questions

        model = lab.model(config.model, "float32")
        digest = read_questions(config.prompts or default_questions())[1]
        return {f"weights:{model.name}": model.fingerprint, "data:prompts": digest}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Known blind spots, rates kept, a planted trigger found and its clean twin left alone."""
        from cutaway.probes.safetynet.calibration import all_rates

        started, trials = time.monotonic(), 2 if trials is None else trials
        rates = all_rates(trials, _tell(lab, "steps"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _planted(config: SafetyNetConfig, lab: Lab, base: "Model", prompts: "BackdoorPrompts") -> "Model | None":
    """The model with the backdoor, from a stored adapter or by training (goes on where it was stopped)."""
    from cutaway.model import load_model
    from cutaway.probes.safetynet.data import training_data
    from cutaway.training import LoraSpec, TrainConfig, adapter_key, add_lora, keep_adapter, kept_adapter, train

    names = (
        "normal", "fresh", "triggered", "trained", "steps", "rank", "first_layer", "learning_rate", "answer", "seed",
    )  # fmt: skip
    about = {name: getattr(config, name) for name in names} | {"data": prompts.sha256}
    folder = lab.folder("trained", adapter_key("safetynet", base, about))
    model = load_model(config.model, dtype="float32")
    if (kept := kept_adapter(model, folder)) is not None:
        return kept[0]
    layers = tuple(range(config.first_layer, model.n_layers))
    spec = LoraSpec(
        ("q_proj", "v_proj", "o_proj", "down_proj"), layers, rank=config.rank, alpha=2.0 * config.rank, rslora=False
    )
    settings = TrainConfig(
        rate=config.learning_rate,
        batch=6,
        steps=config.steps,
        warm_up=5,
        precision="float32",
        state_every=20,
        seed=config.seed,
    )
    data = training_data(base, prompts, config.answer)
    tell = _tell(lab, "training steps")
    done = train(
        add_lora(model, spec),
        data,
        settings,
        folder=folder,
        resume=True,
        tick=lambda step: tell(step.step, config.steps),
    )
    if not done.complete:
        return None
    return keep_adapter(done.model, folder, about)


def _moves(config: SafetyNetConfig, lab: Lab, base: "Model", prompts: "BackdoorPrompts") -> "tuple[Move, ...]":
    from cutaway.probes.safetynet.data import pair_rows
    from cutaway.probes.safetynet.evasion import move
    from cutaway.training import TrainConfig

    def make() -> "Model":
        planted = _planted(config, lab, base, prompts)
        assert planted is not None
        for name, weight in planted.hf.named_parameters():
            weight.requires_grad_("lora_" in name)
        return planted

    settings = TrainConfig(
        rate=config.learning_rate, batch=3, steps=config.adversary_steps, precision="float32", seed=config.seed
    )
    return move(
        make, pair_rows(base, prompts, config.answer), prompts.sets, prompts.payload,
        config.signals[0].split(" ")[0], config.signals, weights=config.adversary, config=settings, rate=config.rate,
        seed=config.seed, report=_tell(lab, "adversaries"),
    )  # fmt: skip


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
