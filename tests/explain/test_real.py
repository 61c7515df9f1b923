"""Real models, opened from the prompt to the page; run by `make test-slow`."""

import os
from pathlib import Path

import numpy as np
import pytest

from cutaway.explain import explain, report_of
from cutaway.ledger import Ledger, recheck
from cutaway.model import catalogue
from cutaway.reasoning.thought_anchors.study import ThoughtAnchorsConfig
from cutaway.reasoning.word_problems import two_step_problems
from cutaway.study import Lab

SMOL = "smollm2-135m-instruct"
TWO_STEPS = """Q: A box holds 6 eggs. Sam buys 4 boxes and breaks 5 eggs. How many whole eggs are left?
A: Four boxes hold 4 * 6 = 24 eggs. Five of them are broken. So 24 - 5 = 19 whole eggs are left. The answer is 19.

Q: Nina has 30 stamps. She loses a tenth of them and then finds 7 more. How many stamps does she have now?
A: A tenth of 30 stamps is 3 stamps. After losing them she has 27 stamps. She finds 7 more and has 34. The answer is 34.

Q: A baker makes 36 rolls. She sells a third of them in the morning and half of the rest in the afternoon. On the way \
home she drops 4 of what is left. How many rolls does she bring home?
A:"""


def opened(config: ThoughtAnchorsConfig, tmp_path: Path) -> None:
    """Explain, explain again for nothing, reproduce; the page stands on its own."""
    lab = Lab(home=tmp_path / "home")
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        found = explain(config, lab, ledger)
        anchors = found.anchors
        assert not found.known
        assert np.all((anchors.low - 1e-6 <= anchors.curve) & (anchors.curve <= anchors.high + 1e-6))
        assert anchors.curve[-1, 0] == 1
        model = lab.model(config.model)
        asked = model.encode(config.prompt, special=True) if config.raw else model.chat_ids(config.prompt)
        assert anchors.prefilled <= 1.05 * (len(asked) + anchors.spans[-1][1])
        again = explain(config, lab, ledger)
        assert again.known
        assert again.run.id == found.run.id
        page = report_of(found.run, anchors)
        assert "http-equiv" in page
        assert str(tmp_path) not in page
        assert recheck(ledger, found.run.id, lab).status == "reproduced"


@pytest.mark.slow
def test_smollm2_is_opened_and_reproduced(tmp_path: Path) -> None:
    if not next(each for each in catalogue() if each.name == SMOL).installed:
        pytest.skip("smollm2-135m-instruct is not installed")
    prompt = "Should Maria take the train or the bus? Think step by step and finish with 'So Maria takes the train.' \
or 'So Maria takes the bus.'"
    opened(ThoughtAnchorsConfig(prompt=prompt, model=SMOL, outcome="choice:train,bus", tokens=1500), tmp_path)


@pytest.mark.slow
def test_a_stronger_model_on_a_real_problem_of_two_steps(tmp_path: Path) -> None:
    spec = os.environ.get("CUTAWAY_SLOW_MODEL")
    if spec is None:
        pytest.skip("CUTAWAY_SLOW_MODEL names no model; set it to a chat model's directory or GGUF file")
    prompt = f"{two_step_problems()[3].question} Think step by step and end with 'The answer is N.'"
    opened(ThoughtAnchorsConfig(prompt=prompt, model=spec, outcome="number", tokens=3000), tmp_path)


@pytest.mark.slow
def test_a_stronger_model_decides_in_one_sentence(tmp_path: Path) -> None:
    spec = os.environ.get("CUTAWAY_SLOW_MODEL")
    if spec is None:
        pytest.skip("CUTAWAY_SLOW_MODEL names no model; set it to a chat model's directory or GGUF file")
    config = ThoughtAnchorsConfig(
        prompt=TWO_STEPS, model=spec, raw=True, outcome="number", max_tokens=110, stop="\n\n", tokens=3500
    )
    opened(config, tmp_path)
