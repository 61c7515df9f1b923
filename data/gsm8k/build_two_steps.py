"""Rebuild ``two_steps.json`` of the reasoning room from GSM8K's training file.

python data/gsm8k/build_two_steps.py TRAIN.jsonl
"""

import json
import re
import sys
from pathlib import Path

TARGET = Path(__file__).parents[2] / "src" / "cutaway" / "reasoning" / "two_steps.json"
N, LONGEST = 200, 220
MARK = re.compile(r"<<([^=<>]+)=(\d+)>>")


def problem(row: dict[str, str]) -> dict[str, object] | None:
    """The row without its calculator marks, or None where it is not two short sums in whole numbers."""
    question = row["question"].strip()
    *steps, last = row["answer"].split("\n")
    marks = [MARK.findall(step) for step in steps]
    if len(steps) != 2 or any(len(found) != 1 for found in marks) or len(question) > LONGEST:
        return None
    (_, between), (second, answer) = marks[0][0], marks[1][0]
    needed = re.search(rf"(?<![\d.]){between}(?![\d.])", second)
    plain = [re.sub(r"<<[^<>]*>>", "", step).strip() for step in steps]
    whole = " ".join([question, *plain])
    if needed is None or last != f"#### {answer}" or answer == between or "<<" in whole or not whole.isascii():
        return None
    return {"question": question, "steps": plain, "between": between, "answer": answer}


def main() -> None:
    rows = map(json.loads, Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    found = [each for row in rows if (each := problem(row)) is not None][:N]
    lines = ",\n".join(json.dumps(each) for each in found)
    TARGET.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
