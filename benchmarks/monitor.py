"""How many sentences a second the monitors of cot-monitorability judge, and what the probe's capture costs.

The rule needs text only. The probe is timed twice: on sentences that were read before (every further scope, design
and resample of a suite), and on fresh text, with the forward pass of a planted model up to the probe's layer. With a
large model the second figure is that model's speed and nothing else.

    python benchmarks/monitor.py [--quick] [--out FILE.json]
"""

import numpy as np
import torch
from timing import claim, interleaved, options, report

from cutaway.planted.policy import Policy, cue_model
from cutaway.reasoning.cot_monitorability import Reading, cue_rule, evaluate, score
from cutaway.reasoning.cot_monitorability.calibration import as_samples
from cutaway.reasoning.cot_monitorability.method import read
from cutaway.reasoning.cot_monitorability.probe import SentencePool, fit_probe

BAR = 1000.0


def main() -> None:
    given = options(__doc__)
    torch.set_num_threads(2)
    policy = Policy(0.6, 0.5)
    samples = as_samples(policy, policy.draw(10 if given.quick else 40, 30, 0), 0)
    readings = [Reading(each.question, each.chain, "") for each in samples]
    sentences = sum(len(each.chain) for each in samples)
    model = cue_model(0.5, 0.5, problems=4).model
    pool = SentencePool(model, "resid_post.0")
    part = readings[:200]
    probe = fit_probe(pool, part, [each.followed for each in samples[:200]], [each.problem for each in samples[:200]])
    rule, told = cue_rule(), read(samples, cue_rule())
    few = sum(len(each.chain) for each in part)
    found = interleaved(
        1 if given.quick else 7,
        rule=lambda _: len(rule.judge(readings)),
        probe=lambda _: len(probe.judge(part)),
        capture=lambda _: len(SentencePool(model, "resid_post.0")(part)),
        evaluate=lambda _: evaluate(samples, rule).value,
        score=lambda _: score(samples, told).value,
    )
    judged = {"rule": sentences, "probe": few, "capture": few, "evaluate": sentences, "score": sentences}
    what = {
        "rule": "rule monitor",
        "probe": "probe on sentences it has read",
        "capture": "probe on fresh text: capture on a planted one-layer model",
        "evaluate": "reading by rule, filter, score and 2,000 resamples",
        "score": "filter, score and 2,000 resamples of verdicts at hand",
    }
    claims = [
        claim(
            text,
            "-",
            np.array([judged[name] / run.wall for run in found[name]]),
            bar=BAR if name in ("rule", "probe", "capture") else None,
            at_least=True,
            unit="sentences/s",
        )
        for name, text in what.items()
    ]
    report(given, claims, samples=len(samples), sentences=sentences)


if __name__ == "__main__":
    main()
