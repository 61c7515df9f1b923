"""Run every benchmark, each in its own process, one after the other; write the figures and one table.

python benchmarks/run.py [--quick] [NAME ...]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BENCHMARKS = (
    "tree",
    "capture",
    "resample",
    "load",
    "attention",
    "anchors",
    "dialogue",
    "monitor",
    "circuits",
    "nodes",
    "arithmetic",
    "cleaning",
    "dictionary",
    "harvest",
    "neuron_graph",
    "index",
    "endpoint",
    "training",
    "finetuning",
    "probes",
    "steering",
    "estimator",
    "replay_published",
)
OWN_OPTIONS = ("replay_published",)
"""These take no --quick and have a table of their own."""


def table() -> str:
    """The claims of every stored result as a Markdown table, the benchmark's name in front."""
    head = ["benchmark", "figure", "against", "required", "median", "min", "max", "verdict"]
    rows = [head, ["---"] * len(head)]
    for name in BENCHMARKS:
        path = RESULTS / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for each in found.get("claims", ()):
            figures = [f"{each[key]:.4g}" for key in ("measured", "low", "high")]
            figures[0] += f" {each['unit']}"
            quick = name + (" (quick)" if found["quick"] else "")
            rows.append([quick, each["what"], each["baseline"], each["requirement"], *figures, each["verdict"]])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    note = "Min and max are over repeats; for `estimator` they are the ends of a 95% bootstrap interval over traces."
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repeats; for development")
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; choose from {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in given.names or BENCHMARKS:
        print(f"-- {name}", flush=True)
        quick = ["--quick"] if given.quick and name not in OWN_OPTIONS else []
        command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(RESULTS / f"{name}.json"), *quick]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    print("", table(), sep="\n", end="")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
