"""The room's public names: all there, and none of them paid for before it is used."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["cutaway.features", "cutaway.features.itda", "cutaway.features.mfr_sae"])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module._PLACES) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_studies_are_imported_without_torch() -> None:
    program = (
        "import sys, cutaway.features.mfr_sae.study, cutaway.features.itda.study;"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
