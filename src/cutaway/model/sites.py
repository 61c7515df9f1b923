"""Names of places in a model: ``kind.layer[.head]``, ``*`` for all, and the names other tools use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.errors import UsageError, nearest
from cutaway.model.families import HEAD_KINDS, Layout

LAYER_KINDS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
    "pattern",
    "neurons",
)
END_KINDS = ("embed", "logits")

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_pattern": "pattern",
    "mlp.hook_post": "neurons",
}
_BLOCK = re.compile(r"blocks\.(\*|\d+)\.(.+)")


@dataclass(frozen=True)
class Site:
    """One place: a kind, its layer (None for embed and logits) and, where one head is meant, the head."""

    kind: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)


def expand(names: str | Sequence[str], layout: Layout) -> dict[str, list[Site]]:
    """Return ``name as given -> the sites it means``; UsageError for a name that means none."""
    given = [names] if isinstance(names, str) else list(names)
    if not given:
        raise UsageError("no site given; name at least one, for example 'resid_post.*'")
    return {name: parse(name, layout) for name in given}


def parse(name: str, layout: Layout) -> list[Site]:
    """Return the sites that one name, alias or wildcard means in this model.

    >>> [str(site) for site in parse("z.0.*", layout)]  # doctest: +SKIP
    ['z.0.0', 'z.0.1', 'z.0.2', 'z.0.3']
    """
    kind, *rest = canonical(name, layout).split(".")
    if kind in END_KINDS:
        if rest:
            raise UsageError(f"site {name!r}: {kind} has no layer; write {kind!r}")
        return [Site(kind)]
    if kind not in LAYER_KINDS:
        known = [*LAYER_KINDS, *END_KINDS]
        raise UsageError(f"site {name!r}: no kind {kind!r}{nearest(kind, known)}")
    if not 1 <= len(rest) <= 2:
        raise UsageError(f"site {name!r}: write kind.layer or kind.layer.head, for example '{kind}.0'")
    layers = _indices(name, "layer", rest[0], layout.n_layers)
    if len(rest) == 1:
        return [Site(kind, layer) for layer in layers]
    if kind not in HEAD_KINDS:
        raise UsageError(f"site {name!r}: {kind} has no heads; only {', '.join(sorted(HEAD_KINDS))} do")
    heads = _indices(name, "head", rest[1], layout.heads(kind))
    return [Site(kind, layer, head) for layer in layers for head in heads]


def canonical(name: str, layout: Layout) -> str:
    """Return ``kind.layer[.head]`` for a TransformerLens hook or Hugging Face module path, else the name."""
    if name == "hook_embed":
        return "embed"
    if match := _BLOCK.fullmatch(name):
        layer, hook = match.groups()
        if hook not in _TRANSFORMER_LENS:
            raise UsageError(f"site {name!r}: no hook {hook!r}{nearest(hook, _TRANSFORMER_LENS)}")
        return f"{_TRANSFORMER_LENS[hook]}.{layer}"
    path = name.removeprefix("base_model.model.")
    if match := re.fullmatch(re.escape(layout.prefix) + r"\.(\*|\d+)(?:\.(.+))?", path):
        layer, inside = match.group(1), match.group(2) or ""
        outputs = layout.outputs()
        if inside not in outputs:
            raise UsageError(f"site {name!r}: the output of {inside!r} is not a site{nearest(inside, outputs)}")
        return f"{outputs[inside]}.{layer}"
    for kind, module in _ends(layout):
        if path and any(module is found for at, found in layout.hf.named_modules() if _same(at, path)):
            return kind
    return name


def _ends(layout: Layout) -> list[tuple[str, object]]:
    return [("embed", layout.hf.get_input_embeddings()), ("logits", layout.hf.get_output_embeddings())]


def _same(at: str, path: str) -> bool:
    return at.removeprefix("base_model.model.") == path


def _indices(name: str, what: str, text: str, size: int) -> list[int]:
    if text == "*":
        return list(range(size))
    if not text.isdecimal() or int(text) >= size:
        raise UsageError(f"site {name!r}: {what} {text!r} must be 0..{size - 1} or '*'")
    return [int(text)]
