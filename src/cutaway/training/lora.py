"""Low-rank adapters by module and layer, through PEFT; and sight of what is inside them.

An adapter adds ``scale * B (A x)`` to what a linear module returns, A [rank d_in], B [d_out rank]; the scale is
alpha / rank, or alpha / sqrt(rank) with rsLoRA. At rank 1, ``A x`` is one number at each position: how strongly the
adapter speaks. Files are PEFT's
own (``adapter_model.safetensors``, ``adapter_config.json``) with the fingerprint of the base weights in the header of
the first. Source: cards em-organisms and em-convergent.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.model import Batch, Model
from cutaway.model.families import resolve
from cutaway.model.model import fingerprint_of

_FILE = "adapter_model.safetensors"
_NAME = "default"


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear module of a Llama-shaped block."""


@dataclass(frozen=True)
class LoraSpec:
    """Where adapters sit and how large they are."""

    modules: tuple[str, ...] = ("down_proj",)
    """Last names of linear modules inside a block, or paths in it: ``down_proj``, ``mlp.down_proj``."""
    layers: tuple[int, ...] | None = None
    """None: all."""
    rank: int = 1
    alpha: float = 64.0
    rslora: bool = True
    """Scale by alpha / sqrt(rank), not alpha / rank."""
    seed: int = 0
    """Of A; B starts at zero."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 1024:
            raise UsageError(f"rank={self.rank}: between 1 and 1024")
        if not 0 < self.alpha < 1e6:
            raise UsageError(f"alpha={self.alpha}: above 0")
        if not self.modules or len(set(self.modules)) < len(self.modules):
            raise UsageError(f"modules={self.modules}: name at least one, each once")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise UsageError(f"layers={self.layers}: name at least one, each once; None for all")

    @property
    def scale(self) -> float:
        """What B (A x) is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter: views of the model's own tensors, so they show training as it goes on."""

    layer: int
    module: str
    """Path inside the block."""
    a: Float[Tensor, "rank d_in"]
    b: Float[Tensor, "d_out rank"]
    scale: float

    def __repr__(self) -> str:
        norm = float(self.b.detach().norm())
        return f"Adapter(layer {self.layer} {self.module}, rank {len(self.a)}, scale {self.scale:g}, |B| {norm:.3g})"


def check_lora(spec: LoraSpec, config: Any) -> int:
    """Return how many parameters ``spec`` adds to a model of a Hugging Face ``config``; no weights are loaded.

    Raises UsageError for a module or layer that such a model does not have.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config)
    return sum(spec.rank * sum(_sides(hf.get_submodule(path))) for path in targets(hf, spec))


def targets(hf: Any, spec: LoraSpec) -> list[str]:
    """Return the full paths of the modules that ``spec`` names; UsageError for one that is not there."""
    layout = resolve(hf)
    layers = range(layout.n_layers) if spec.layers is None else spec.layers
    bad = next((layer for layer in layers if not 0 <= layer < layout.n_layers), None)
    if bad is not None:
        raise UsageError(f"layer {bad}: the model has 0..{layout.n_layers - 1}")
    home = next(path for path, module in hf.named_modules() if module is layout.blocks)
    found = []
    for layer in layers:
        linear = [path for path, module in layout.blocks[layer].named_modules() if _is_linear(module)]
        for name in spec.modules:
            paths = [path for path in linear if path == name or path.endswith("." + name)]
            if not paths:
                known = {part for path in linear for part in (path, path.rpartition(".")[2])}
                raise UsageError(f"module {name!r}: block {layer} has no such linear module{nearest(name, known)}")
            found += [f"{home}.{layer}.{path}" for path in paths]
    return list(dict.fromkeys(found))


def add_lora(model: Model, spec: LoraSpec) -> Model:
    """Return the model with fresh adapters, which alone are trainable. The given one shares its modules: drop it.

    Raises UsageError for an unknown module or layer, or a model that has adapters already.
    """
    from peft import LoraConfig, get_peft_model

    _without_adapters(model)
    paths = targets(model.hf, spec)
    flipped = type(model.hf.get_submodule(paths[0])).__name__ == "Conv1D"
    config = LoraConfig(
        r=spec.rank,
        # peft takes whole numbers by its annotation only; the scale is set below either way
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        use_rslora=spec.rslora,
        target_modules=paths,
        fan_in_fan_out=flipped,
        bias="none",
        task_type="CAUSAL_LM",
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _quiet():
        torch.manual_seed(spec.seed)
        wrapped = get_peft_model(model.hf, config)
    return Model(wrapped, model.tokenizer, name=model.name, spec=model.spec)


def adapters(model: Model) -> dict[str, Adapter]:
    """Return every adapter by the path of its module; empty for a model without."""
    layout, found = model.layout, {}
    for layer in range(layout.n_layers):
        for path, module in layout.blocks[layer].named_modules():
            if _NAME in getattr(module, "lora_A", {}):
                held: Any = module
                a, b = held.lora_A[_NAME].weight, held.lora_B[_NAME].weight
                found[f"{layout.prefix}.{layer}.{path}"] = Adapter(layer, path, a, b, float(held.scaling[_NAME]))
    return found


def adapter_scalars(model: Model, batch: Batch) -> dict[str, Float[Tensor, "batch pos rank"]]:
    """Return ``A x`` of every adapter at every position, from one forward; gradients are kept where grad mode is on."""
    found: dict[str, Tensor] = {}
    handles = []
    try:
        for path, module in _wrapped(model).items():
            hook = _keeper(found, path)
            handles.append(module.lora_A[_NAME].register_forward_hook(hook))
        model.hf(**batch.forward_kwargs(), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def adapters_scaled(model: Model, factor: float) -> Iterator[Model]:
    """Multiply what every adapter adds inside the block: 0 gives exactly the base model, 1 changes nothing."""
    modules = list(_wrapped(model).values())
    before = [module.scaling[_NAME] for module in modules]
    try:
        for module, scale in zip(modules, before, strict=True):
            module.scaling[_NAME] = scale * factor
        yield model
    finally:
        for module, scale in zip(modules, before, strict=True):
            module.scaling[_NAME] = scale


def save_adapter(model: Model, folder: str | Path) -> None:
    """Write the adapters in PEFT's form, with the fingerprint of the weights they belong to."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    _wrapped(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(model.hf).items()}
    save_file(tensors, folder / _FILE, metadata={"format": "pt", "base": base_fingerprint(model)})
    model.hf.peft_config[_NAME].save_pretrained(str(folder))


def load_adapter(model: Model, folder: str | Path) -> Model:
    """Return the model with adapters read from ``folder``, switched to training. The given one shares its modules.

    Raises CutawayError for files that are missing, damaged, or of other base weights.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    _without_adapters(model)
    folder = Path(folder)
    try:
        with safe_open(folder / _FILE, framework="pt") as file:
            base = (file.metadata() or {}).get("base")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    except (SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise CutawayError(f"{folder} holds no adapter that can be read: {error}") from error
    if base is not None:
        refuse_other_weights(base, base_fingerprint(model), f"the adapter in {folder}")
    with torch.random.fork_rng(devices=[]), _quiet():
        wrapped = get_peft_model(model.hf, config)
    result: Any = set_peft_model_state_dict(wrapped, tensors)
    lacking = [name for name in result.missing_keys if "lora_" in name]
    if lacking or result.unexpected_keys:
        raise CutawayError(
            f"the adapter in {folder} does not fit {model.name!r}: {(lacking + result.unexpected_keys)[0]}"
        )
    return Model(wrapped, model.tokenizer, name=model.name, spec=model.spec)


def base_fingerprint(model: Model) -> str:
    """Return the fingerprint of the weights below the adapters: that of the model before it was given any."""
    if not hasattr(model.hf, "peft_config"):
        return model.fingerprint
    state = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in model.hf.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }
    return fingerprint_of(model, state)


def refuse_other_weights(wanted: str, given: str, what: str) -> None:
    """Raise CutawayError unless the two fingerprints are one."""
    if wanted != given:
        raise CutawayError(
            f"{what} belongs to base weights {wanted[:12]}, this model has {given[:12]}; load that model"
        )


def _keeper(found: dict[str, Tensor], path: str) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        found[path] = output

    return keep


def _wrapped(model: Model) -> dict[str, Any]:
    paths = adapters(model)
    if not paths:
        raise UsageError(f"model {model.name!r} has no adapters; add_lora or load_adapter gives it some")
    layout = model.layout
    return {path: layout.blocks[each.layer].get_submodule(each.module) for path, each in paths.items()}


def _without_adapters(model: Model) -> None:
    if hasattr(model.hf, "peft_config"):
        raise UsageError(f"model {model.name!r} has adapters already; load the model again for other ones")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or hasattr(module, "lora_A")


def _sides(module: Any) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return rows, columns


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft itself reads a property that transformers deprecates
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield
