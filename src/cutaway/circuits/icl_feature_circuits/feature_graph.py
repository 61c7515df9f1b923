"""Sparse feature circuits: what each feature, at each role of token, is worth to the metric, and how they are wired.

At a **place** (a site with a dictionary) the value splits as  x = sum_i f_i a_i + rest + error,  where rest is the
decoder's bias (and skip connection) and error = x - decode(encode(x)). With g the metric's gradient at the site:

- node effect  IE_i = (g . a_i) f_i, error node  g . error, rest  g . rest; together they are g . x. First order: what
  removing the feature (f_i to 0) would cost. `node_effects(steps=m)` averages the gradient along f from 0 to its value.
- edge effect  of an upstream feature on a downstream one: the gradient of  f_down (g . a_down)  with respect to the
  upstream site, through exactly one sublayer (attention, MLP, or the stream past them), times f_up a_up.

Effects are summed over the positions of a role and averaged over prompts, with standard errors over prompts. Metric:
mean log-probability over the prompts' targets (all arrows but the first, by `data.prepare`).

Sources: card, Method; Marks et al. 2024 for the split with an error node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.cleaning import check_width
from cutaway.circuits.icl_feature_circuits.data import Prompts
from cutaway.circuits.icl_feature_circuits.task_vectors import answers
from cutaway.errors import UsageError
from cutaway.features import Codes, Dictionary
from cutaway.model import Model, Patch

WRITES = ("resid_pre", "attn_out", "mlp_out")
_LINEAR = 1e-3


@dataclass(frozen=True, eq=False)
class Place:
    """A dictionary at work."""

    site: str
    """Where its features are: ``resid_pre.L``, ``attn_out.L`` or ``mlp_out.L``."""
    dictionary: Dictionary
    reads: str
    """Where the encoder reads: the same site, but for a transcoder."""

    @property
    def kind(self) -> str:
        return self.site.split(".")[0]

    @property
    def layer(self) -> int:
        return int(self.site.split(".")[1])

    def encode(self, x: Float[Tensor, "batch pos d_model"]) -> Codes:
        """Codes of all tokens, rows in order of [batch pos]."""
        return self.dictionary.encode(x.flatten(0, 1))

    def rest(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "row d_model"]:
        """What is decoded where no latent is active."""
        rows = x.flatten(0, 1)
        none = Codes(
            torch.zeros(len(rows), 1, dtype=torch.long, device=x.device), rows[:, :1] * 0, self.dictionary.n_latents
        )
        return self.dictionary.decode(none, rows)


def places(model: Model, dictionaries: Mapping[str, Dictionary]) -> tuple[Place, ...]:
    """Check dictionaries, given by the site they write to, and return them in the order of the model."""
    found = []
    for site, dictionary in dictionaries.items():
        kind, _, layer = site.partition(".")
        if kind not in WRITES or not layer.isdecimal() or int(layer) >= model.n_layers:
            raise UsageError(f"site {site!r}: one of {', '.join(f'{kind}.L' for kind in WRITES)}, L below the depth")
        check_width(dictionary, model.d_model, f"site {site!r}")
        about = dictionary.provenance
        found.append(Place(site, dictionary, about.site if about.target and about.site else site))
    return tuple(sorted(found, key=lambda place: (place.layer, WRITES.index(place.kind))))


@dataclass(frozen=True, eq=False)
class Seen:
    """One place in one forward and backward pass."""

    x: Float[Tensor, "batch pos d_model"]
    """Value at the site."""
    read: Float[Tensor, "batch pos d_model"]
    """Value where the encoder reads."""
    gradient: Float[Tensor, "batch pos d_model"]
    """Of each prompt's own metric."""
    codes: Codes
    rest: Float[Tensor, "row d_model"]


def observe(model: Model, prompts: Prompts, at: Sequence[Place]) -> tuple[dict[str, Seen], Float[Tensor, " batch"]]:
    """Run forward and backward once; return what each place saw, and each prompt's metric."""
    sites = [place.site for place in at]
    with torch.no_grad():
        read = model.capture(prompts.batch, [place.reads for place in at], special=True)
    gradients, values, metric = _gradients(model, prompts, sites)
    seen = {}
    for place in at:
        x, given = values[place.site], read[place.reads]
        with torch.no_grad():
            codes, rest = place.encode(given), place.rest(given)
        _check_linear(place, codes, rest, given)
        seen[place.site] = Seen(x, given, gradients[place.site], codes, rest)
    return seen, metric


def metric(model: Model, prompts: Prompts) -> Float[Tensor, " batch"]:
    """Mean log-probability of each prompt's targets, nats."""
    return -answers(model, prompts)[0]


@dataclass(frozen=True, eq=False)
class NodeEffects:
    """What features, errors and rest of one place are worth, by prompt and role of token."""

    site: str
    roles: tuple[str, ...]
    features: Float[Tensor, "batch role latent"]
    error: Float[Tensor, "batch role"]
    rest: Float[Tensor, "batch role"]
    total: Float[Tensor, "batch role"]
    """g . x"""

    @property
    def mean(self) -> Float[Tensor, "role latent"]:
        """Effect of each feature, mean over prompts."""
        return self.features.mean(0)

    @property
    def error_of_mean(self) -> Float[Tensor, "role latent"]:
        """Its standard error over prompts; nan for one prompt."""
        return self.features.std(0) / len(self.features) ** 0.5 if len(self.features) > 1 else self.mean * torch.nan

    def top(self, n: int, role: str | None = None) -> list[tuple[str, int, float]]:
        """(role, latent, effect) of the features that help most."""
        effects = self.mean.clone()
        if role is not None:
            effects[[i for i, name in enumerate(self.roles) if name != role]] = -torch.inf
        best = effects.flatten().topk(min(n, effects.numel()))
        width = effects.shape[1]
        return [
            (self.roles[int(i) // width], int(i) % width, float(value))
            for value, i in zip(best.values, best.indices, strict=True)
            if value > 0
        ]


def node_effects(model: Model, prompts: Prompts, at: Sequence[Place], *, steps: int = 0) -> dict[str, NodeEffects]:
    """Effects of all nodes at all places.

    steps: 0 for the gradient where the model is; m for its mean at m midpoints while the place's features grow from 0
    to their values (error and rest stay).
    """
    seen, _ = observe(model, prompts, at)
    effects = {}
    for place in at:
        here = seen[place.site]
        gradient = here.gradient if steps == 0 else _integrated(model, prompts, place, here, steps)
        effects[place.site] = _split_up(place, prompts, here, gradient)
    return effects


@dataclass(frozen=True)
class Node:
    """A feature at one role of token; latent -1 is the place's error."""

    site: str
    role: str
    latent: int

    def __str__(self) -> str:
        return f"{self.site}:{self.role}:{'error' if self.latent < 0 else self.latent}"


@dataclass(frozen=True)
class Edge:
    """How much of a downstream node's effect comes from an upstream node through one sublayer."""

    upstream: Node
    downstream: Node
    effect: float
    error: float
    """Standard error over prompts; nan for one."""


def edge_effects(
    model: Model, prompts: Prompts, at: Sequence[Place], downstream: Sequence[Node], *, keep: int = 32
) -> list[Edge]:
    """The ``keep`` strongest edges into each node from places one sublayer up; error nodes count as upstream."""
    seen, _ = observe(model, prompts, at)
    by_site = {place.site: place for place in at}
    edges: list[Edge] = []
    for node in downstream:
        if node.site not in by_site:
            raise UsageError(f"node {node}: no place at {node.site!r}")
        found: list[Edge] = []
        for upstream in at:
            if not _adjacent(upstream, by_site[node.site]):
                continue
            gradient = sublayer_gradient(model, prompts, upstream, by_site[node.site], node, seen)
            parts = _split_up(upstream, prompts, seen[upstream.site], gradient)
            found += _edges(parts, node, keep)
        edges += sorted(found, key=lambda edge: -abs(edge.effect))[:keep]
    return edges


def sublayer_gradient(
    model: Model, prompts: Prompts, upstream: Place, downstream: Place, node: Node, seen: Mapping[str, Seen]
) -> Float[Tensor, "batch pos d_model"]:
    """Gradient of  sum over the node's tokens of f_down (g . a_down)  at the upstream site, through one sublayer."""
    below = seen[downstream.site]
    with torch.enable_grad():
        leaf = seen[upstream.site].x.detach().clone().requires_grad_()
        value = below.read.detach().clone().requires_grad_()
        inside = prompts.having(node.role).flatten()
        codes = downstream.encode(value)
        active = (codes.values * (codes.indices == node.latent)).sum(-1)
        worth = (below.gradient.flatten(0, 1) @ downstream.dictionary.atoms[node.latent]).detach()
        (at_read,) = torch.autograd.grad((active * worth * inside).sum(), value)
        if downstream.kind == "resid_pre" or downstream.reads == f"resid_mid.{upstream.layer}":
            return at_read  # the stream carries the upstream value as it is
        out = _through(model, prompts, upstream, downstream, leaf)
        (gradient,) = torch.autograd.grad((out * at_read).sum(), leaf)
    return gradient


def _through(model: Model, prompts: Prompts, upstream: Place, downstream: Place, leaf: Tensor) -> Tensor:
    """The downstream reading site as a function of ``leaf`` at the upstream site; nothing else varies."""
    layer, reads = downstream.layer, downstream.reads
    start = f"resid_pre.{layer}"
    with torch.no_grad():
        given = model.capture(prompts.batch, [start, f"attn_out.{layer}"], special=True)
    if downstream.kind == "attn_out":
        with model.started(layer, leaf):
            return model.capture(prompts.batch, reads, special=True)[reads]
    stream = leaf if upstream.kind == "resid_pre" else given[start]
    attention = leaf if upstream.kind == "attn_out" else given[f"attn_out.{layer}"]
    with model.started(layer, stream), model.edited(Patch(f"attn_out.{layer}", _moved(attention))):
        return model.capture(prompts.batch, reads, special=True)[reads]


def _moved(value: Tensor) -> Tensor:
    """The value, marked as trained: a patch with what is there already is meant here, and no mistake."""
    return value if value.requires_grad else value.clone().requires_grad_()


def _adjacent(upstream: Place, downstream: Place) -> bool:
    """Whether one sublayer, or the stream, leads from one place to the other."""
    if downstream.kind == "resid_pre":
        return upstream.layer == downstream.layer - 1
    if upstream.layer != downstream.layer:
        return False
    return WRITES.index(upstream.kind) < WRITES.index(downstream.kind)


def _gradients(
    model: Model, prompts: Prompts, sites: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Each site's gradient and value, and each prompt's metric (rows do not mix, so their sum is differentiated)."""
    columns, where = prompts.at.unique(return_inverse=True)
    with torch.no_grad():
        bottom = model.capture(prompts.batch, "resid_pre.0", special=True)["resid_pre.0"]
    with torch.enable_grad(), model.started(0, bottom.clone().requires_grad_()):
        caught = model.capture(prompts.batch, [*sites, "logits"], special=True)
        logits = caught["logits"][:, columns]
        picked = logits.gather(1, where[..., None].expand(-1, -1, logits.shape[-1]))
        wanted = picked.log_softmax(-1).gather(-1, prompts.target[..., None])[..., 0]
        real = prompts.real.to(wanted)
        each = (wanted * real).sum(-1) / real.sum(-1)
        found = torch.autograd.grad(each.sum(), [caught[site] for site in sites], materialize_grads=True)
    gradients = dict(zip(sites, found, strict=True))
    return gradients, {site: caught[site].detach() for site in sites}, each.detach()


def _integrated(model: Model, prompts: Prompts, place: Place, here: Seen, steps: int) -> Tensor:
    """Mean gradient at midpoints of the growth of all features that have a role."""
    features = _decoded(place, here.codes, here.x) * (prompts.role >= 0)[..., None]
    total = torch.zeros_like(here.x)
    for step in range(steps):
        at = here.x - (1 - (step + 0.5) / steps) * features
        leaf = at.detach().clone().requires_grad_()
        with torch.enable_grad(), model.edited(Patch(place.site, leaf)):
            total += torch.autograd.grad(metric(model, prompts).sum(), leaf)[0]
    return total / steps


def _decoded(place: Place, codes: Codes, like: Tensor) -> Float[Tensor, "batch pos d_model"]:
    """Sum of the active atoms, without rest."""
    with torch.no_grad():
        out = torch.nn.functional.embedding_bag(
            codes.indices, place.dictionary.atoms, per_sample_weights=codes.values, mode="sum"
        )
    return out.view_as(like)


def _split_up(place: Place, prompts: Prompts, here: Seen, gradient: Tensor) -> NodeEffects:
    """Divide gradient . x among features, rest and error, summed over each role's tokens."""
    with torch.no_grad():
        rows, role = gradient.flatten(0, 1), prompts.role
        n_roles, n, latents = len(prompts.roles), len(prompts), place.dictionary.n_latents
        atoms = place.dictionary.atoms
        slots = [
            torch.einsum("rd,rsd->rs", part, atoms[chosen])
            for part, chosen in zip(rows.split(64), here.codes.indices.split(64), strict=True)
        ]
        worth = torch.cat(slots) * here.codes.values
        group = torch.where(role >= 0, role + torch.arange(n, device=role.device)[:, None] * n_roles, -1).flatten()
        used = group >= 0
        flat = worth.new_zeros(n * n_roles * latents)
        flat.index_add_(0, (group[used, None] * latents + here.codes.indices[used]).flatten(), worth[used].flatten())
        rest = (rows * here.rest).sum(-1)
        total = (rows * here.x.flatten(0, 1)).sum(-1)

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(n * n_roles).index_add_(0, group[used], values[used]).view(n, n_roles)

        error = total - rest - worth.sum(-1)
        features = flat.view(n, n_roles, latents)
        return NodeEffects(place.site, prompts.roles, features, summed(error), summed(rest), summed(total))


def _edges(parts: NodeEffects, node: Node, keep: int) -> list[Edge]:
    values = torch.cat([parts.features, parts.error[..., None]], -1)
    mean = values.mean(0)
    errors = values.std(0) / len(values) ** 0.5 if len(values) > 1 else mean * np.nan
    best = mean.abs().flatten().topk(min(keep, mean.numel())).indices
    width = mean.shape[1]
    found = []
    for index in best.tolist():
        role, latent = divmod(index, width)
        if mean[role, latent] == 0:
            continue
        upstream = Node(parts.site, parts.roles[role], latent if latent < width - 1 else -1)
        found.append(Edge(upstream, node, float(mean[role, latent]), float(errors[role, latent])))
    return found


def _check_linear(place: Place, codes: Codes, rest: Tensor, given: Tensor) -> None:
    """The split needs atoms that add up: refuse dictionaries whose decoder scales each row by itself."""
    rows = given.flatten(0, 1)[:16]
    few = Codes(codes.indices[:16], codes.values[:16], codes.n_latents)
    with torch.no_grad():
        said = place.dictionary.decode(few, rows)
        added = rest[:16] + few.dense() @ place.dictionary.atoms
    if float((said - added).norm()) > _LINEAR * float(said.norm().clamp(min=1e-9)):
        raise UsageError(
            f"dictionary at {place.site!r}: its decoder is not a sum of atoms (layer-normed rows?); feature circuits"
            " need one that is"
        )
