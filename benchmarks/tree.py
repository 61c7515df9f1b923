"""The branch tree on disk: rollouts appended a second, and how soon a killed run can go on.

The baseline is what one would write without it: ``json.dumps`` and a line, no checksum, no lock, no index.

    python benchmarks/tree.py [--quick] [--out FILE.json]
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from timing import claim, interleaved, options, ratios, report

from cutaway.sampling import BranchTree, Request, Rollout, Settings

ROLLOUTS, TOKENS, BOUNDARIES = 10_000, 60, 20


def material() -> list[tuple[Request, Rollout]]:
    """Rollouts of one trace: 20 prefixes of 100 to 480 tokens, 500 seeds each."""
    rng = np.random.default_rng(0)
    text = tuple(rng.integers(0, 49152, 500).tolist())
    settings = Settings(max_tokens=TOKENS)
    made = []
    for seed in range(ROLLOUTS):
        ids = tuple(rng.integers(0, 49152, TOKENS).tolist())
        logprobs = tuple((-rng.exponential(size=TOKENS)).tolist())
        prefix = text[: 100 + 20 * (seed % BOUNDARIES)]
        made.append((Request(prefix, (seed,), settings), Rollout(seed, ids, logprobs, "length")))
    return made


def plain_append(path: Path, made: list[tuple[Request, Rollout]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for request, rollout in made:
            file.write(json.dumps({"prefix": len(request.prefix), **vars(rollout)}) + "\n")
            file.flush()


def tree_append(folder: Path, made: list[tuple[Request, Rollout]]) -> None:
    with BranchTree.open(folder, "benchmark") as tree:
        for request, rollout in made:
            tree.add(request, rollout)


def plain_scan(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return len([json.loads(line) for line in file])


def tree_scan(folder: Path) -> int:
    with BranchTree.open(folder, "benchmark") as tree:
        return len(tree)


def main() -> None:
    given = options(__doc__)
    made, repeats = material(), 2 if given.quick else 7
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        append = interleaved(
            repeats,
            tree=lambda repeat: tree_append(at / f"tree{repeat}", made),
            plain=lambda repeat: plain_append(at / f"plain{repeat}", made),
        )
        scan = interleaved(repeats, tree=lambda _: tree_scan(at / "tree0"), plain=lambda _: plain_scan(at / "plain0"))
    seconds = {name: [each.wall for each in runs] for name, runs in scan.items()}
    rates = {name: [ROLLOUTS / each.wall for each in runs] for name, runs in append.items()}
    cpu_rate = [ROLLOUTS / each.cpu for each in append["tree"]]
    plain = "json.dumps, one line each"
    report(
        given,
        [
            claim("rollouts appended a second", plain, rates["tree"], bar=5000, at_least=True, unit="/s"),
            claim("rollouts appended a CPU second", plain, cpu_rate, bar=5000, at_least=True, unit="/s"),
            claim("seconds of appending", plain, ratios(append, "tree", "plain")),
            claim("resume scan of 10,000 rollouts", "json.loads of each line", seconds["tree"], bar=1, unit="s"),
            claim("seconds of the scan", "json.loads of each line", ratios(scan, "tree", "plain")),
        ],
        rollouts=ROLLOUTS,
        tokens=TOKENS,
        rates=rates,
        scan=seconds,
    )


if __name__ == "__main__":
    main()
