"""The study of learned feedback: tune a model on a known reward, read it back, say where it went another way."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model import Model
    from cutaway.probes.learned_feedback_patterns.lexicon import Lexicon
    from cutaway.probes.learned_feedback_patterns.method import Ablation
    from cutaway.probes.learned_feedback_patterns.report import Outcome
    from cutaway.stats import Interval


class FeedbackConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The base model: a name of the catalogue or a directory."""
    lexicon: str = ""
    """CSV with word and value; empty: the adjectives of the source tree."""
    flipped: int = Field(16, ge=0)
    """Words whose reward is turned round."""
    unseen: int = Field(8, ge=0)
    """Words, also turned round, that tuning never meets."""
    pairs: int = Field(600, ge=2)
    """Preference pairs to tune on."""
    steps: int = Field(120, ge=1)
    """Of tuning (DPO)."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of tuning."""
    beta: float = Field(0.1, gt=0)
    """Of DPO: how dearly leaving the base model is paid."""
    rank: int = Field(8, ge=1)
    """Of the adapters."""
    sites: tuple[str, ...] = ("resid_post.14", "resid_post.20", "resid_post.26")
    """Where words are read."""
    tested: int = Field(120, ge=20)
    """Pairs to test preference on."""
    latents: int = Field(512, ge=8)
    """Of the dictionary that is trained on the tuned model's activations at the first site."""
    ablated: int = Field(8, ge=1)
    """Latents taken out."""
    draws: int = Field(50, ge=2)
    """Random sets beside them."""
    judge: bool = True
    """Whether the model is tried as a judge of explanations."""
    seed: int = Field(0, ge=0)
    """Of the flips, the pairs and tuning."""


@study
class LearnedFeedback(Study[FeedbackConfig]):
    id = "learned-feedback-patterns"
    title = "The reward a model was tuned on, read back from its activations against its base"
    paper = "Marks, Abdullah, Neo, Arike, Krueger, Torr, Barez 2024, arXiv:2310.08164"
    status = "held-out words, gain over the base, misaligned words listed, ablation in latent space (calibrated)"
    Config = FeedbackConfig

    def run(self, config: FeedbackConfig, lab: Lab) -> Findings:
        """Tune (or load) the model and read it; the adapter is kept for the next run."""
        from cutaway.probes.learned_feedback_patterns.method import check_pair
        from cutaway.probes.learned_feedback_patterns.report import charts, findings, summarise

        base = lab.model(config.model, "float32")
        lexicon, digest = _lexicon(config)
        inputs = {f"weights:{base.name}": base.fingerprint, "data:lexicon": digest}
        tuned = _tuned(config, lab, base, lexicon, digest)
        if tuned is None:
            item = Finding("gain of tuning", None, undefined="stopped while tuning")
            return Findings((item,), "stopped while tuning; run again to go on", inputs=inputs, complete=False)
        check_pair(base, tuned)
        try:
            found = _measured(config, base, tuned, lexicon, lab)
        except KeyboardInterrupt:
            item = Finding("gain of tuning", None, undefined="stopped while reading")
            return Findings((item,), "stopped while reading; the tuned model is kept", inputs=inputs, complete=False)
        body = {
            "words": [
                {"word": word, "ordinary": lexicon.ordinary[word], "reward": lexicon.reward[word],
                 "tuned": found.best.tuned.estimates[word], "base": found.best.base.estimates[word]}
                for word in lexicon.reward
            ],
            "misaligned": found.misaligned,
        }  # fmt: skip
        return Findings(
            items=findings(found),
            summary=summarise(found),
            artifacts={"words.json": (json.dumps(body) + "\n").encode()},
            charts=charts(found),
            inputs=inputs,
            result=found,
        )

    def inputs(self, config: FeedbackConfig, lab: Lab) -> dict[str, str]:
        """The weights and the lexicon."""
        model = lab.model(config.model, "float32")
        return {f"weights:{model.name}": model.fingerprint, "data:lexicon": _lexicon(config)[1]}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """A planted pair read back word by word, and an untuned pair that has nothing to say."""
        from cutaway.probes.learned_feedback_patterns.calibration import all_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates = all_rates(trials, _tell(lab, "trials"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _lexicon(config: FeedbackConfig) -> "tuple[Lexicon, str]":
    from cutaway.probes.learned_feedback_patterns.data import here
    from cutaway.probes.learned_feedback_patterns.lexicon import read_lexicon

    path = Path(config.lexicon) if config.lexicon else here("lexicon.csv")
    found = read_lexicon(path, config.flipped, config.unseen, config.seed)
    return found, hashlib.sha256(path.read_bytes()).hexdigest()


def _tuned(config: FeedbackConfig, lab: Lab, base: "Model", lexicon: "Lexicon", digest: str) -> "Model | None":
    """The tuned model, from a stored adapter or by DPO (goes on where it was stopped)."""
    from cutaway.model import load_model
    from cutaway.probes.learned_feedback_patterns.data import preference_pairs
    from cutaway.training import (
        DPO,
        LoraSpec,
        TrainConfig,
        adapter_key,
        add_lora,
        keep_adapter,
        kept_adapter,
        reference_logps,
        train,
    )

    names = ("flipped", "unseen", "pairs", "steps", "learning_rate", "beta", "rank", "seed")
    about = {name: getattr(config, name) for name in names} | {"data": digest}
    folder = lab.folder("trained", adapter_key("feedback", base, about))
    model = load_model(config.model, dtype="float32")
    if (kept := kept_adapter(model, folder)) is not None:
        return kept[0]
    data = preference_pairs(base, lexicon, config.pairs, config.seed)
    objective = DPO(reference_logps(base, data, batch=32), config.beta)
    spec = LoraSpec(("down_proj", "o_proj"), None, rank=config.rank, alpha=2.0 * config.rank, rslora=False)
    settings = TrainConfig(
        rate=config.learning_rate, batch=16, steps=config.steps, warm_up=5, precision="float32", state_every=20,
        seed=config.seed,
    )  # fmt: skip
    tell = _tell(lab, "tuning steps")
    done = train(
        add_lora(model, spec), data, settings, objective=objective, folder=folder, resume=True,
        tick=lambda step: tell(step.step, config.steps),
    )  # fmt: skip
    if not done.complete:
        return None
    return keep_adapter(done.model, folder, about)


def _measured(config: FeedbackConfig, base: "Model", tuned: "Model", lexicon: "Lexicon", lab: Lab) -> "Outcome":
    from cutaway.probes.learned_feedback_patterns.data import READ_TEMPLATES, here
    from cutaway.probes.learned_feedback_patterns.judge import gate, likelihood_judge, read_choices
    from cutaway.probes.learned_feedback_patterns.lexicon import misaligned, tau_interval
    from cutaway.probes.learned_feedback_patterns.method import compare, implicit_reward, read_out, word_features
    from cutaway.probes.learned_feedback_patterns.report import Outcome

    words, tell = list(lexicon.reward), _tell(lab, "parts")
    tell(0, 5)
    ours, other = (word_features(model, words, READ_TEMPLATES, config.sites) for model in (tuned, base))
    reports = tuple(compare(ours[s], other[s], lexicon.reward, s, seed=config.seed) for s in config.sites)
    best = max(reports, key=lambda each: each.gain.value).tuned.site
    odd = misaligned(
        read_out(ours[best] - other[best], lexicon.ordinary, best, seed=config.seed).estimates, lexicon.ordinary
    )
    tell(1, 5)
    blunt = [template.format("").rstrip() + "{}" for template in READ_TEMPLATES]
    said = implicit_reward(tuned, base, [f" {word}" for word in words], blunt)
    implicit = tau_interval({word.strip(): value for word, value in said.items()}, lexicon.reward, config.seed)
    tell(2, 5)
    codes, ablation = _codes_and_ablation(config, tuned, lexicon, ours[config.sites[0]])
    tell(3, 5)
    pairs = _pairs(config, base, tuned, lexicon, best)
    tell(4, 5)
    verdict = gate(read_choices(here("explanation_choices.jsonl")), likelihood_judge(base)) if config.judge else None
    return Outcome(reports, lexicon, odd, implicit, codes, pairs, ablation, verdict)


def _codes_and_ablation(
    config: FeedbackConfig, tuned: "Model", lexicon: "Lexicon", words: "Tensor"
) -> "tuple[dict[str, Interval], Ablation | None]":
    import torch

    from cutaway.errors import UsageError
    from cutaway.features import TrainConfig, train_dictionary
    from cutaway.probes.learned_feedback_patterns.data import READ_TEMPLATES, TRAIN_TEMPLATES
    from cutaway.probes.learned_feedback_patterns.method import ablate, read_out, reward_latents
    from cutaway.probes.pooled import activations

    site = config.sites[0]
    texts = [template.format(word) for template in TRAIN_TEMPLATES for word in lexicon.reward]
    (rows,) = (torch.cat(each) for each in activations(tuned, texts, site, "tokens").values.values())
    generator = torch.Generator().manual_seed(config.seed)
    mixed = (rows[torch.randperm(len(rows), generator=generator)] for _ in range(20))
    settings = TrainConfig(
        n_latents=config.latents, k=min(16, config.latents), batch=min(512, len(rows)), rate=1e-3, warm_up=10
    )
    made = train_dictionary(mixed, settings).dictionary
    dense = made.encode(words).dense()
    codes = {site: read_out(dense, lexicon.reward, site, seed=config.seed).agreement}
    chosen = reward_latents(made, words, lexicon.reward, config.ablated)
    prompts = [template.format("").rstrip() for template in READ_TEMPLATES]
    try:
        return codes, ablate(tuned, prompts, lexicon.reward, site, made, chosen, draws=config.draws, seed=config.seed)
    except UsageError:
        # Few latents can be active on four short prompts; the report then says that there is no control.
        return codes, None


def _pairs(
    config: FeedbackConfig, base: "Model", tuned: "Model", lexicon: "Lexicon", site: str
) -> "dict[str, Interval]":
    """AUROC of better texts by cross-fitted probes, pairs kept whole, and by words alone."""
    import numpy as np

    from cutaway.probes.learned_feedback_patterns.data import pair_texts
    from cutaway.probes.pooled import activations
    from cutaway.probes.scoring import auroc
    from cutaway.probes.selection import grouped_folds
    from cutaway.probes.shortcuts import word_scores
    from cutaway.probes.transfer import Labelled, transfer

    texts, better, groups = pair_texts(lexicon, config.tested, config.seed)
    labels = np.array(better)
    found: dict[str, Interval] = {}
    for name, model in (("tuned", tuned), ("base", base)):
        x = activations(model, texts, site, "mean")[site, "mean"]
        shuffled = np.random.default_rng(config.seed).permutation(labels)
        for suffix, y in (("", labels), (", shuffled labels", shuffled)):
            cell = transfer([Labelled("pairs", x, y, tuple(groups))], ("logistic",), resamples=0).cells[0]
            assert cell.area is not None
            found[f"{name}{suffix}"] = cell.area
    scores = np.zeros(len(labels))
    for held in grouped_folds(groups, 5, config.seed, labels):
        train = [text for text, h in zip(texts, held, strict=True) if not h]
        scores[held] = word_scores(train, labels[~held], [text for text, h in zip(texts, held, strict=True) if h])
    found["words alone"] = auroc(labels, scores, clusters=np.array(groups))
    return found


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
