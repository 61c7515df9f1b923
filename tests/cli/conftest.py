"""The real command in this process, on a planted model saved as a local checkpoint."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # let the tests import their helpers by name

from cutaway.cli.main import main
from cutaway.planted import Reasoner, reasoner


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error message; it must be one line and nothing else may have been printed."""
        assert self.code in (1, 2), self
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert self.out == ""
        return lines[0].removeprefix("error: ")


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def planted() -> Reasoner:
    return reasoner("pfsa", p_one=(0.1, 0.9), n_ctx=256)


@pytest.fixture(scope="session")
def checkpoint(planted: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "little-reasoner"
    planted.model.hf.save_pretrained(folder)
    planted.model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "models" / checkpoint.name))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CUTAWAY_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def cutaway(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command's entry point with these arguments."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["cutaway", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run
