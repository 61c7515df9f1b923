"""Loading a model and the memory of one explanation, each in a fresh process.

The first load de-quantises the GGUF file into the cache, later ones map the checkpoint. The baseline of loading is
`transformers` on that checkpoint; that of memory is a process which loads with `transformers` and generates.

    python benchmarks/load.py [--quick] [--out FILE.json]
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timing import PROMPT, claim, options, report

from cutaway.model import catalogue

NAME = "smollm2-135m-instruct"
LOAD = f"""
import json, time
at = time.perf_counter()
import cutaway.model, transformers.models.llama.modeling_llama
from cutaway.model import load_model
imported = time.perf_counter()
load_model({NAME!r}, dtype="float32")
print(json.dumps([imported - at, time.perf_counter() - imported]))
"""
PLAIN = """
import json, sys, time
at = time.perf_counter()
import torch, cutaway.model, transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
imported = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps([imported - at, time.perf_counter() - imported]))
if len(sys.argv) > 2:
    ids = tokenizer(sys.argv[2], return_tensors="pt")
    model.generate(**ids, max_new_tokens=100, do_sample=False)
"""


def child(command: Sequence[str], home: Path) -> tuple[str, float]:
    """(standard output, peak resident memory in GB) of one process with its cache under ``home``."""
    settings = {**os.environ, "CUTAWAY_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=settings, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{command[1:3]} ended with status {process.returncode}")
    return text, usage.ru_maxrss * 1024 / 1e9  # Linux counts KiB


def main() -> None:
    given = options(__doc__)
    repeats, python = 2 if given.quick else 5, sys.executable
    sha = next(entry.sha256 for entry in catalogue() if entry.name == NAME)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        out, first_memory = child([python, "-c", LOAD], home)
        first = json.loads(out)
        checkpoint = str(home / "models" / sha)
        child([python, "-c", PLAIN, checkpoint], home)
        ours, plain = [], []
        for _ in range(repeats):
            ours.append(json.loads(child([python, "-c", LOAD], home)[0]))
            plain.append(json.loads(child([python, "-c", PLAIN, checkpoint], home)[0]))
        cli = "from cutaway.cli.main import main; main()"
        asked = ["explain", PROMPT, "--model", NAME, "--outcome", "choice:train,bus", "--tokens", "300"]
        rest = ["--dtype", "float32", "--fresh", "--json", "--ledger", f"sqlite:///{home / 'ledger.db'}"]
        memory = [child([python, "-c", cli, *asked, *rest], home)[1] for _ in range(1 if given.quick else 2)]
        plain_memory = [child([python, "-c", PLAIN, checkpoint, PROMPT], home)[1] for _ in memory]
    seconds = [load for _, load in ours]
    against = [a / b for (_, a), (_, b) in zip(ours, plain, strict=True)]
    hf = "transformers on the same checkpoint"
    shares = [a / b for a, b in zip(memory, plain_memory, strict=True)]
    report(
        given,
        [
            claim("second load, seconds inside load_model", hf, seconds, bar=3, unit="s"),
            claim("second load", hf, against),
            claim("first load, de-quantising", hf, [first[1]], unit="s"),
            claim("import", "-", [each for each, _ in ours], unit="s"),
            claim("peak memory of explain, 300 tokens", "-", memory, bar=2, unit="GB"),
            claim("peak memory of explain", "transformers: load and generate 100 tokens", shares),
            claim("peak memory of the first load", "-", [first_memory], unit="GB"),
        ],
        ours=ours,
        transformers=plain,
        memory={"explain": memory, "transformers": plain_memory},
    )


if __name__ == "__main__":
    main()
