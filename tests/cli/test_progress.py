"""The bar takes whatever a study says of how far it is."""

import re

import pytest

from cutaway.cli.progress import bench
from cutaway.study import Progress


def test_a_study_that_does_not_know_its_total_still_shows(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # or nothing is drawn where no terminal is
    monkeypatch.setenv("TERM", "xterm")
    with bench(fresh=True) as lab:
        lab.progress(Progress(0.0, None, "prompts"))
        lab.progress(Progress(3.0, None, "prompts"))
        lab.progress(Progress(2.5, 10.0, "nodes"))
    shown = capfd.readouterr().err
    assert "prompts" in shown
    assert "3/?" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
