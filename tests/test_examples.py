"""Every example runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

from cutaway.model import catalogue

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    if not next(each for each in catalogue() if each.name == "smollm2-135m-instruct").installed:
        pytest.skip("smollm2-135m-instruct is not installed")
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
