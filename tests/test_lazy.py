"""Names on demand: every public name of every package arrives, none of them drags a model library in too early."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import cutaway

ROOT = Path(cutaway.__file__).parent
PACKAGES = [
    ".".join(("cutaway", *path.parent.relative_to(ROOT).parts))
    for path in sorted(ROOT.rglob("__init__.py"))
    if "on_demand(__name__)" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_public_name_is_the_thing_and_not_a_module_of_that_name(package: str) -> None:
    found = import_module(package)
    for name in found.__all__:
        assert not isinstance(getattr(found, name), ModuleType), name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'cutaway' has no attribute 'explain_anser'"):
        cutaway.explain_anser  # noqa: B018


def test_a_list_of_studies_needs_no_model_library() -> None:
    code = "import sys; from cutaway.study import studies; studies(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
