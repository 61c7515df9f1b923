"""What the tools call the places of a model, and which sites those are."""

import re

from cutaway.errors import UsageError, nearest

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "neurons": "mlp.hook_post",
}
_PATHS = {"": "resid_post", "mlp": "mlp_out", "self_attn": "attn_out", "attn": "attn_out", "attention": "attn_out"}


def site_of(hook: str) -> str:
    """Return the site that a hook name or module path means; a place that is no site comes back as it is.

    >>> site_of("blocks.15.hook_resid_post"), site_of("model.layers.3.mlp"), site_of("blocks.2.ln2.hook_normalized")
    ('resid_post.15', 'mlp_out.3', 'blocks.2.ln2.hook_normalized')
    """
    kinds = {name: kind for kind, name in HOOKS.items()}
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", hook):
        layer, name = match.groups()
        return f"{kinds[name]}.{layer}" if name in kinds else hook
    if match := re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?", hook):
        layer, inside = match.groups()
        kind = _PATHS.get(inside or "")
        return f"{kind}.{layer}" if kind else hook
    return hook


def hook_of(site: str) -> str:
    """Return the TransformerLens name of a site; UsageError for one that has none."""
    if site == "embed":
        return "hook_embed"
    kind, _, layer = site.partition(".")
    if kind not in HOOKS or not layer.isdecimal():
        raise UsageError(f"site {site!r} has no hook name{nearest(kind, HOOKS)}; pass hook=")
    return f"blocks.{layer}.{HOOKS[kind]}"


def path_of(site: str) -> str:
    """Return the module path of a site in a Llama-like model; UsageError for one that is no module's output."""
    paths = {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".self_attn"}
    kind, _, layer = site.partition(".")
    if kind not in paths or not layer.isdecimal():
        raise UsageError(f"site {site!r} is no module's output{nearest(kind, paths)}; pass hook=")
    return f"layers.{layer}{paths[kind]}"
