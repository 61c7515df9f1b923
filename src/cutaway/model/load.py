"""Load a model by catalogue name, Hugging Face id, directory or GGUF file. No pickles, no code from hubs."""

import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.model.catalogue import catalogue, entry
from cutaway.model.gguf import checkpoint_of
from cutaway.model.model import Model
from cutaway.model.quiet import quiet

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_model(spec: str | Path, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto") -> Model:
    """Return the model that ``spec`` names, in eval mode, with gradients of its weights switched off.

    ``spec`` is a catalogue name, a Hugging Face id (HF_HUB_OFFLINE is honoured), a directory with a
    safetensors checkpoint, or a GGUF file, which is de-quantised once into the cache. ``dtype="auto"`` is
    bf16 where the processor multiplies it natively, else fp32; ``device="auto"`` is CUDA where there is one.

    Raises UsageError for a name, dtype or device that cannot be, CutawayError for damaged or missing files.
    """
    where = _device(device)
    precision = _dtype(dtype, where)
    path, name = _resolve(spec)
    hf, tokenizer = _read(path, name, precision)
    hf.requires_grad_(False)
    return Model(hf.to(where), tokenizer, name=name, spec=str(spec))


def native_bf16(device: torch.device) -> bool:
    """Say whether ``device`` multiplies bf16 in hardware: CUDA, or a CPU with AMX-BF16 or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    if dtype not in _DTYPES:
        raise UsageError(f"dtype={dtype!r}{nearest(dtype, ['auto', *_DTYPES])}")
    return _DTYPES[dtype]


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device={device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={str(device)!r}: this machine has no usable CUDA device; use 'cpu' or 'auto'")
    return chosen


def _resolve(spec: str | Path) -> tuple[str | Path, str]:
    """Return ``(what from_pretrained takes, the model's short name)``."""
    names = [known.name for known in catalogue()]
    if spec in names:
        known = entry(str(spec))
        if known.kind != "model":
            raise UsageError(f"{known.name!r} is an {known.kind}, not a language model")
        return checkpoint_of(known), known.name
    path = Path(spec).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UsageError(f"{path} is a file but not a GGUF; give a .gguf file or a checkpoint's directory")
        return checkpoint_of(path), path.stem
    if path.is_dir():
        _check_directory(path)
        return path, path.resolve().name
    text = str(spec)
    # A name cut short, such as 'smolm2', is compared with as much of each name.
    short = next((n for n in names if nearest(text, [n[: len(text)]]).startswith("; did you mean")), None)
    near = f"; did you mean {short!r}?" if short else nearest(text, names)
    looks_local = isinstance(spec, Path) or not _HUB_ID.fullmatch(text) or text.endswith(".gguf")
    if looks_local or ("/" not in text and near.startswith("; did you mean")):
        raise UsageError(f"no model {text!r}: not in the catalogue, not a file, not a directory{near}")
    return text, text


def _check_directory(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise CutawayError(f"{path} has no config.json; give a directory written by save_pretrained")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(found.name for pattern in _PICKLED for found in path.glob(pattern))
    if pickled:
        raise CutawayError(
            f"{path} holds only pickled weights ({pickled[0]}), which can run code when read;"
            " convert them to safetensors first"
        )
    raise CutawayError(f"{path} has no *.safetensors weights; give a directory written by save_pretrained")


def _read(path: str | Path, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            # Without a network each of the hub's files would be asked for six times over before giving up.
            local = isinstance(path, Path) or not _hub_answers()
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=local)
            options: dict[str, Any] = {
                "use_safetensors": True,
                "trust_remote_code": False,
                "local_files_only": local,
            }
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    except SafetensorError as error:
        raise CutawayError(f"the safetensors weights of {name!r} are damaged: {_first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CutawayError(_explain(path, name, error)) from error
    hf, info = loaded
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise CutawayError(
            f"the weights of {name!r} lack {len(lacking)} tensors the config asks for, first {lacking[0]!r}"
        )
    return hf, tokenizer


def _hub_answers() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True  # only the proxy can tell
    where = urlsplit(constants.ENDPOINT)
    port = where.port or (80 if where.scheme == "http" else 443)
    try:
        socket.create_connection((where.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _explain(path: str | Path, name: str, error: Exception) -> str:
    line = _first_line(error)
    if isinstance(path, Path):
        return f"cannot load {name!r}: {line}"
    return (
        f"cannot load {name!r} from the Hugging Face hub: {line};"
        " check the name, the network and HF_HUB_OFFLINE, or give a local directory"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
