"""The answerability study: does what reads "the answer is there" on one set read it on another?"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.features import Dictionary
    from cutaway.probes.sae_answerability.data import Item


class AnswerabilityConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    items: str = ""
    """JSON lines with id, question, context, answerable; empty: the QNLI pairs of the source tree."""
    n: int = Field(600, ge=60)
    """Real items, half answerable."""
    longest: int = Field(600, ge=1)
    """Characters of a real passage; longer ones are left out."""
    generated: int = Field(300, ge=60)
    """Items of each generated set."""
    kind: str = "matched"
    """Of generated items: matched, swapped or plain (leaks)."""
    templates: tuple[str, ...] = ("question first", "passage first", "instruction", "json", "chat")
    """How prompts are written, dealt in turn."""
    sites: tuple[str, ...] = ("resid_post.10", "resid_post.15", "resid_post.20")
    """Where the last token is read."""
    families: tuple[str, ...] = ("logistic", "mean difference", "1 latent", "k latents", "worst domain")
    """Kinds of probe."""
    k: int = Field(5, ge=1)
    """Latents of the k-sparse probe."""
    dictionaries: str = ""
    """Folder with one dictionary a site, named as the site; empty: small ones are trained on the real items."""
    latents: int = Field(2048, ge=8)
    """Of a dictionary that is trained here."""
    resamples: int = Field(20, ge=0)
    """Refits on resampled training rows, for the intervals."""
    seed: int = Field(0, ge=0)
    """Of the items and all draws."""


@study
class AnswerabilityStudy(Study[AnswerabilityConfig]):
    id = "sae-answerability"
    title = "Sparse and dense probes out of their domain: the table, the shortcuts, honest selection"
    paper = "Heindrich, Torr, Barez, Thost 2025, arXiv:2502.19964"
    status = (
        "transfer table with both sources of error, one-pass screening, nested selection, matched sets (calibrated)"
    )
    Config = AnswerabilityConfig

    def run(self, config: AnswerabilityConfig, lab: Lab) -> Findings:
        """Read, encode, fill the table; activations and dictionaries are kept for the next run."""
        from cutaway.probes.sae_answerability.method import measure
        from cutaway.probes.sae_answerability.report import charts, findings, summarise

        model = lab.model(config.model, "float32")
        sets, digest = _sets(config)
        folder = lab.activations
        found = measure(
            model,
            sets,
            config.sites,
            config.families,
            templates=config.templates,
            dictionaries=_given(config),
            latents=config.latents,
            k=config.k,
            resamples=config.resamples,
            folder=folder,
            seed=config.seed,
            report=lambda done, total, note: lab.progress(Progress(float(done), float(total), "steps", note)),
        )
        return Findings(
            items=findings(found),
            summary=summarise(found),
            artifacts={"transfer.json": (json.dumps(_plain(found.to_dict())) + "\n").encode()},
            charts=charts(found),
            inputs={f"weights:{model.name}": model.fingerprint, "data:items": digest},
            complete=found.complete,
            result=found,
        )

    def inputs(self, config: AnswerabilityConfig, lab: Lab) -> dict[str, str]:
        """The weights and the items."""
        model = lab.model(config.model, "float32")
        return {f"weights:{model.name}": model.fingerprint, "data:items": _sets(config)[1]}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted domains ranked and flagged, coins left alone, selection without favour, sets without leaks."""
        from cutaway.probes.sae_answerability.calibration import all_rates

        started, trials = time.monotonic(), 12 if trials is None else trials
        tell: Callable[[int, int], None] = lambda done, total: lab.progress(  # noqa: E731
            Progress(float(done), float(total), "trials")
        )
        return Calibration(self.id, all_rates(trials, tell), time.monotonic() - started, {"trials": trials})


def default_items() -> Path:
    """The pairs of the source tree; UsageError where the package was installed without it."""
    from cutaway.errors import UsageError

    path = Path(__file__).parents[4] / "data" / "sae-answerability" / "qnli_answerability.jsonl"
    if not path.is_file():
        raise UsageError("no items at hand; set items=FILE, JSON lines with id, question, context, answerable")
    return path


def _sets(config: AnswerabilityConfig) -> "tuple[dict[str, list[Item]], str]":
    from cutaway.probes.sae_answerability.data import celebrity_items, equation_items, qnli_items

    real, digest = qnli_items(config.items or default_items(), config.n, config.seed, config.longest)
    size = config.generated - config.generated % 2
    sets = {
        "real": real,
        "equation": equation_items(size, config.kind, config.seed),
        "celebrity": celebrity_items(size, config.kind, config.seed),
    }
    return sets, digest


def _given(config: AnswerabilityConfig) -> "dict[str, Dictionary] | None":
    from cutaway.features import load_dictionary

    if not config.dictionaries:
        return None
    return {site: load_dictionary(Path(config.dictionaries) / site) for site in config.sites}


def _plain(value: object) -> object:
    """JSON without nan."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
