"""The study of subliminal learning: what a student takes from its teacher's meaningless outputs."""

import hashlib
import json
import time
from collections.abc import Callable

from pydantic import Field

from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study


class SubliminalConfig(StudyConfig):
    toy_models: int = Field(20, ge=2)
    """Networks of the digits toy, side by side."""
    toy_steps: int = Field(600, ge=1)
    """Steps of distillation on noise."""
    toy_all_logits: bool = True
    """Whether the arms on all thirteen logits are run too."""
    seed: int = Field(0, ge=0)
    """Of everything drawn."""


@study
class Subliminal(Study[SubliminalConfig]):
    id = "subliminal-learning"
    title = "Traits that pass from teacher to student through data that do not name them"
    paper = "Schrodi, Kempf, Barez, Brox 2025, arXiv:2509.23886; Cloud et al. 2025, arXiv:2507.14805"
    status = "digits toy with derangement control (calibrated)"
    Config = SubliminalConfig

    def run(self, config: SubliminalConfig, lab: Lab) -> Findings:
        """Run the toy."""
        from cutaway.organisms.subliminal_learning.report import toy_charts, toy_findings, toy_summary
        from cutaway.organisms.subliminal_learning.toy import ARMS, ToyConfig, run_toy

        settings = ToyConfig(models=config.toy_models, steps=config.toy_steps, seed=config.seed)
        toy = run_toy(settings, ARMS if config.toy_all_logits else ARMS[:2], _tell(lab, "steps of the toy"))
        return Findings(
            items=toy_findings(toy),
            summary=toy_summary(toy),
            artifacts={"toy.json": (json.dumps(toy.to_dict()) + "\n").encode()},
            charts=toy_charts(toy),
            inputs=self.inputs(config, lab),
            complete=toy.complete,
            result=toy,
        )

    def inputs(self, config: SubliminalConfig, lab: Lab) -> dict[str, str]:
        """The digits, as split."""
        from cutaway.organisms.subliminal_learning.toy import digits

        data = digits(config.seed)
        content = data.train.numpy().tobytes() + data.test.numpy().tobytes()
        return {"data:digits": hashlib.sha256(content).hexdigest()}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """The toy with the same start, and with another as its null; ``trials`` counts networks."""
        from cutaway.organisms.subliminal_learning.calibration import toy_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates = toy_rates(trials, _tell(lab, "steps"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
