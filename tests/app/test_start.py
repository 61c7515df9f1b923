"""`cutaway serve`: what is wrong is said before anything is loaded; named files reach the server."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from cutaway.app.registry import Registry, Wishes, read_registry
from cutaway.app.start import start
from cutaway.cli.main import app
from cutaway.errors import CutawayError, UsageError
from cutaway.model import Add, Model
from cutaway.model.edits import save_edits
from cutaway.probes import LinearProbe


def test_an_open_address_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUTAWAY_TOKEN", raising=False)
    with pytest.raises(UsageError, match="needs a token"):
        start(None, host="0.0.0.0")
    short = tmp_path / "token"
    short.write_text("short\n")
    with pytest.raises(UsageError, match="16 ASCII"):
        start(None, host="0.0.0.0", token_file=short)
    with pytest.raises(UsageError, match="--token-file"):
        start(None, token_file=tmp_path / "none")
    done = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert isinstance(done.exception, UsageError)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        start(None, index=tmp_path / "none")
    with pytest.raises(UsageError, match="need a --model"):
        start(None, vectors=["a=b"])
    with pytest.raises(UsageError, match="NAME=PATH"):
        start("none", vectors=["ab"])
    with pytest.raises(CutawayError, match="cannot be read"):
        start("none", vectors=[f"a={tmp_path / 'none'}"])
    with pytest.raises(UsageError, match="port=70000"):
        start(None, port=70000)


def test_named_files_can_be_asked_for(tiny: Model, tmp_path: Path) -> None:
    vector = torch.arange(tiny.d_model).float()
    save_file({"vector": vector}, tmp_path / "one.safetensors")
    save_file({"a": vector, "b": vector + 1}, tmp_path / "two.safetensors")
    save_edits([Add("resid_post.0", vector, 2.0)], tmp_path / "edits.safetensors")
    LinearProbe(vector, 0.5, "resid_post.1").save(tmp_path / "probe")
    found = read_registry(
        [f"one={tmp_path}/one.safetensors", f"two={tmp_path}/two.safetensors"],
        [f"calm={tmp_path}/edits.safetensors"],
        [f"near={tmp_path}/probe"],
    )
    assert sorted(found.vectors) == ["one", "two.a", "two.b"]
    wishes = Wishes(tiny, found)
    assert wishes.names == ["tiny", "tiny+calm"]
    assert wishes.edits("tiny+calm", None) == (Add("resid_post.0", vector, 2.0),)


def test_vectors_that_steering_saved_are_named_by_layer(tmp_path: Path) -> None:
    from cutaway.steering import Vectors

    values = torch.randn(2, 8)
    Vectors((3, 5), values, torch.ones(2), "f" * 64, 4).save(tmp_path / "v.safetensors")
    found = read_registry([f"kind={tmp_path}/v.safetensors"])
    assert list(found.vectors) == ["kind.3", "kind.5"]
    assert torch.equal(found.vectors["kind.5"], values[1])


def test_what_does_not_fit_the_model_is_refused_at_the_start(tiny: Model) -> None:
    with pytest.raises(UsageError, match="needs 32 weights"):
        Wishes(tiny, Registry(monitors={"x": LinearProbe(torch.ones(5), 0.0, "resid_post.1")}))
    with pytest.raises(UsageError, match="does not fit"):
        Wishes(tiny, Registry(edits={"x": (Add("resid_post.0", torch.ones(5)),)}))
    other = LinearProbe(torch.ones(32), 0.0, "resid_post.1", fingerprint="f" * 64)
    with pytest.raises(UsageError, match="other weights"):
        Wishes(tiny, Registry(monitors={"x": other}))
    with pytest.raises(UsageError, match="no '\\+'"):
        Wishes(tiny, Registry(edits={"a+b": (Add("resid_post.0", torch.ones(32)),)}))


def test_without_the_web_packages_it_says_which_to_install() -> None:
    program = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from cutaway.cli.main import main; sys.argv = ['cutaway', 'serve']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the web app needs fastapi: pip install 'cutaway[app]'"
