"""What can be cut or patched in a model: a head or MLP at one position or at all, or the residual stream at one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.models import ROWS, answer_logits, rows, token_loss
from cutaway.circuits.arithmetic.questions import Questions
from cutaway.errors import UsageError
from cutaway.model import Model, Replace
from cutaway.model.model import Batch


@dataclass(frozen=True)
class Node:
    """A place in the model.

    ``Node(12, 0, 1)`` is head 1 of layer 0 at position 12, ``Node(12, 0)`` the MLP of layer 0 there,
    ``Node(12)`` the residual stream after every layer there; ``Node(None, 0, 1)`` is head 1 at every position.
    """

    position: int | None
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.layer is None and (self.head is not None or self.position is None):
            raise UsageError(f"{self!r}: a head needs its layer, the residual stream a position")

    def __str__(self) -> str:
        parts = ["" if self.position is None else f"P{self.position}", "" if self.layer is None else f"L{self.layer}"]
        parts.append("" if self.layer is None else "MLP" if self.head is None else f"H{self.head}")
        return "".join(parts)

    @property
    def is_head(self) -> bool:
        return self.head is not None

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorting key: position, layer, head, the MLP last."""
        values = (self.position, self.layer, self.head)
        return tuple(10**6 if value is None else value for value in values)  # type: ignore[return-value]


def all_nodes(model: Model, form: Format, positions: Iterable[int] | None = None) -> tuple[Node, ...]:
    """Every head and MLP of every layer at ``positions`` (default: all but the last, which predicts nothing)."""
    wanted = range(form.n_ctx - 1) if positions is None else positions
    kinds = [*range(model.n_heads), None]
    return tuple(Node(p, layer, kind) for p in wanted for layer in range(model.n_layers) for kind in kinds)


def whole_heads(model: Model) -> tuple[Node, ...]:
    """Every head at all positions."""
    return tuple(Node(None, layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))


def residuals(form: Format) -> tuple[Node, ...]:
    """The residual stream at every position."""
    return tuple(Node(position) for position in range(form.n_ctx))


KEPT = {"z": "z", "k": "k", "v": "v", "mlp": "mlp_out", "mid": "resid_mid", "post": "resid_post"}
"""Field of a record to the kind of site that it keeps."""


@dataclass(frozen=True)
class Record:
    """What one forward over a set left behind; lists are by layer."""

    ids: Int[Tensor, "question pos"]
    z: list[Float[Tensor, "question pos head d_head"]]
    k: list[Float[Tensor, "question pos head d_head"]]
    v: list[Float[Tensor, "question pos head d_head"]]
    mlp: list[Float[Tensor, "question pos d_model"]]
    mid: list[Float[Tensor, "question pos d_model"]]
    post: list[Float[Tensor, "question pos d_model"]]

    def value(self, node: Node) -> Tensor:
        """The node's output [question ...]; [question pos ...] for a node at every position."""
        assert node.layer is not None
        at = slice(None) if node.position is None else node.position
        return self.mlp[node.layer][:, at] if node.head is None else self.z[node.layer][:, at, node.head]

    def mean(self) -> "Record":
        """Means over the questions, one row: each layer's own."""
        parts = {name: [x.mean(0, keepdim=True) for x in getattr(self, name)] for name in KEPT}
        return Record(self.ids[:1], **parts)

    def zero(self) -> "Record":
        """Zeros in the place of the means."""
        parts = {name: [x[:1] * 0 for x in getattr(self, name)] for name in KEPT}
        return Record(self.ids[:1], **parts)


@torch.no_grad()
def record(model: Model, questions: Questions) -> Record:
    """Run the questions once and keep every head's and MLP's output and the stream between them."""
    ids = rows(model, questions)
    found = model.capture(as_batch(ids), [f"{kind}.*" for kind in KEPT.values()], special=True)
    layers = range(model.n_layers)
    return Record(ids, **{name: [found[f"{kind}.{layer}"] for layer in layers] for name, kind in KEPT.items()})


def as_batch(ids: Int[Tensor, "question pos"]) -> Batch:
    """Rows of equal length, nothing padded."""
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool))


Group = tuple[Node, ...]
"""Nodes changed together: of one layer and position."""
Values = Callable[[Node], Tensor]
"""A node's new output [question ...] (or one row for all questions)."""


@dataclass(frozen=True)
class Answers:
    """How the model answers with each group changed."""

    loss: Float[np.ndarray, "group question token"]
    predicted: Int[np.ndarray, "group question token"]


@torch.no_grad()
def answers_with(model: Model, form: Format, clean: Record, groups: Sequence[Group], values: Values) -> Answers:
    """Answer all questions of ``clean`` once for each group of nodes, with the group's outputs replaced.

    Only what a change can reach is computed. A head's change enters linearly, so its own layer's attention is
    not run again and its MLP only at the changed position; the layers above run on all groups as one batch;
    after the last layer a change moves one position's logits and nothing else. Equal to editing the sites one
    node at a time, up to rounding.
    """
    targets = clean.ids[:, form.equals + 1 :]
    base = answer_logits_from(model, form, clean)
    loss = token_loss(base, targets).repeat(len(groups), 1, 1)
    predicted = base.argmax(-1).repeat(len(groups), 1, 1)
    for layer in range(-1, model.n_layers):
        members = [i for i, group in enumerate(groups) if (-1 if group[0].layer is None else group[0].layer) == layer]
        for part in _batches(groups, members, len(targets)):
            chosen = [groups[i] for i in part]
            for token, place, logits in _logits(model, form, clean, chosen, values, layer):
                at = part[place] if isinstance(place, int) else torch.tensor(part)
                loss[at, :, token] = token_loss(logits, _aim(targets, token, logits))
                predicted[at, :, token] = logits.argmax(-1)
    return Answers(loss.cpu().numpy(), predicted.cpu().numpy())


def _aim(targets: Tensor, token: slice, logits: Tensor) -> Tensor:
    return targets[:, token].expand(logits.shape[:-1])


def answer_logits_from(model: Model, form: Format, clean: Record) -> Float[Tensor, "question token vocab"]:
    """The logits of the answer tokens, from what a record kept."""
    last = clean.post[-1][:, form.equals : form.equals + form.n_answer]
    logits: Tensor = model.hf.lm_head(model.hf.transformer.ln_f(last))
    return logits


def _batches(groups: Sequence[Group], members: list[int], n: int) -> Iterator[list[int]]:
    """Groups of one position together, as many as a forward takes."""
    size = max(1, 2 * ROWS // max(n, 1))
    for _, run in groupby(members, lambda i: groups[i][0].position):
        own = list(run)
        yield from (own[start : start + size] for start in range(0, len(own), size))


def _logits(
    model: Model, form: Format, clean: Record, groups: list[Group], values: Values, layer: int
) -> Iterator[tuple[slice, int | slice, Tensor]]:
    """Yield (answer tokens, place among the groups, their new logits); what is not yielded stays as it was."""
    if layer < 0:
        for place, group in enumerate(groups):
            yield slice(None), place, _without_position(model, form, clean, group, values)
        return
    changed = [_new_post(model, clean, group, values, layer) for group in groups]
    if layer + 1 < model.n_layers:
        token, logits = _above(model, form, clean, groups, changed, layer)
        yield token, slice(None), logits
        return
    head, norm = model.hf.lm_head, model.hf.transformer.ln_f
    for place, (group, post) in enumerate(zip(groups, changed, strict=True)):
        position = group[0].position
        if position is None:
            yield slice(None), place, head(norm(post[:, form.equals : form.equals + form.n_answer]))
        elif position in form.predicting:
            at = position - form.equals
            yield slice(at, at + 1), place, head(norm(post))[:, None]


def _new_post(model: Model, clean: Record, group: Group, values: Values, layer: int) -> Tensor:
    """The layer's output with the group changed: at the group's position, or at all of them."""
    block, d_head = model.hf.transformer.h[layer], model.d_head
    places = {node.position for node in group}
    if len(places) > 1 or any(node.layer != layer for node in group):
        raise UsageError(f"group {'+'.join(map(str, group))}: nodes of one layer and position only")
    at = slice(None) if None in places else group[0].position
    mid = clean.mid[layer][:, at]
    new_mlp = None
    for node in group:
        if node.head is None:
            new_mlp = values(node).expand_as(mid)
        else:
            weight = block.attn.c_proj.weight[node.head * d_head : (node.head + 1) * d_head]
            mid = mid + (values(node) - clean.value(node)) @ weight
    return mid + (block.mlp(block.ln_2(mid)) if new_mlp is None else new_mlp)


def _above(
    model: Model, form: Format, clean: Record, groups: list[Group], changed: list[Tensor], layer: int
) -> tuple[slice, Tensor]:
    """Run the layers above on every group's stream, from the groups' one position on.

    What lies to the left is unchanged, so its keys and values are those of the clean run. The last layer is run
    only where answer tokens are predicted.
    """
    start, end, n = groups[0][0].position or 0, form.n_ctx - 1, len(groups)
    stream = clean.post[layer][:, start:end].repeat(n, 1, 1, 1)
    for place, (group, post) in enumerate(zip(groups, changed, strict=True)):
        if group[0].position is None:
            stream[place] = post[:, :end]
        elif start < end:
            stream[place, :, 0] = post
    stream, first = stream.flatten(0, 1), start
    for above in range(layer + 1, model.n_layers):
        if above == model.n_layers - 1:
            first = max(start, form.equals)
        stream = _block(model, clean, above, stream, start, first, n)
    logits = model.hf.lm_head(model.hf.transformer.ln_f(stream)).unflatten(0, (n, len(clean.ids)))
    return slice(max(0, first - form.equals), None), logits


def _block(model: Model, clean: Record, layer: int, stream: Tensor, start: int, first: int, n: int) -> Tensor:
    """One block on positions ``start`` on; the output begins at position ``first``."""
    block = model.hf.transformer.h[layer]
    q, k, v = block.attn.c_attn(block.ln_1(stream)).split(model.d_model, dim=-1)
    heads = (model.n_heads, model.d_head)
    stream = stream[:, first - start :]
    q = q[:, first - start :].unflatten(-1, heads).transpose(1, 2)
    before = (clean.k[layer][:, :start].repeat(n, 1, 1, 1), clean.v[layer][:, :start].repeat(n, 1, 1, 1))
    k, v = (
        torch.cat([old, new.unflatten(-1, heads)], dim=1).transpose(1, 2)
        for old, new in zip(before, (k, v), strict=True)
    )
    at = torch.arange(k.shape[2], device=k.device)
    seen = at[None, :] <= at[first:, None]
    z = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
    mid = stream + block.attn.c_proj(z)
    out: Tensor = mid + block.mlp(block.ln_2(mid))
    return out


def _without_position(model: Model, form: Format, clean: Record, group: Group, values: Values) -> Tensor:
    """Replace the stream after every layer at one position; ``values`` gives [layer question ...] stacked."""
    (node,) = group
    assert node.position is not None
    each = values(node)
    stream = clean.post[0].clone()
    stream[:, node.position] = each[0]
    if model.n_layers == 1:
        last = stream[:, form.equals : form.equals + form.n_answer]
        logits: Tensor = model.hf.lm_head(model.hf.transformer.ln_f(last))
        return logits
    edits = [
        Replace(f"resid_post.{layer}", each[layer, 0], positions=node.position) for layer in range(1, model.n_layers)
    ]
    with model.started(1, stream), model.edited(*edits):
        return answer_logits(model.hf, clean.ids, form)
