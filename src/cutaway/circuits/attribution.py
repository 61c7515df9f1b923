"""Score every edge at once: how much the answer loses, to first order, when an edge carries the reference value.

    score(u -> r) = sum over positions of (now_u - reference_u) . dL/dx_r

so a positive score means that the edge as it is supports the answer. The gradient at a reader's input is averaged
over points between the reference run (0) and the clean run (1):

    eap              at 1                                       Syed et al.; attribution patching by edge
    eap-ig           at 0/m, 1/m, ..., (m-1)/m (``rule="left"``, as published) or the midpoints (``rule="midpoint"``,
                     half the error for the same cost); the embedding is what moves along the path
    clean-corrupted  at 0 and 1
    mask-gradient    the masks of all edges move together from cut to kept; oracle for the others at 1; slow
    exact            L(clean) - L(this edge cut), one circuit for each edge; for small models
    random           uniform noise: the control

How the gradients of all readers come out of an ordinary fused forward:

1. dL/dq, dL/dk, dL/dv of each head are taken behind the projections. A reader's input passes the norm and one slice
   W of the projection, so with s the norm's scale, c the centred stream and q = W (gain * s * c):
   dL/dx = s * centre(gain * W^T dL/dq) - s^2 / d_model * (q . dL/dq) * c.
2. The first term needs only s * dL/dq, d_head numbers, summed over steps. Its product with the writers is made once.
3. The second is a number for each reader and position times the stream: its products with the writers are made at
   each step, one layer of writers at a time. With ``norm="frozen"`` (scales held constant) it is absent.
4. Writers stay head outputs z. Their share of the stream is made for one layer at a time and dropped.

Sources: EAP-IG (peers page section 2), query circuits (card, Method).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.gradients import gradients
from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.memory import plan
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import Anatomy, anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.record import Ablation, beginning, record, reference
from cutaway.circuits.sums import Sums
from cutaway.circuits.wiring import Grouping, Wiring
from cutaway.errors import UsageError, nearest
from cutaway.model import Model

Method = Literal["eap", "eap-ig", "clean-corrupted", "mask-gradient", "exact", "random"]
Rule = Literal["left", "midpoint"]
NormGradient = Literal["true", "frozen"]


_TOKENS_AT_ONCE = 20
"""Of all points and pairs in one pass on a processor: as fast as more of them, and a fraction of their memory."""


@dataclass(frozen=True)
class Settings:
    """How edges are scored."""

    method: Method | str = "eap-ig"
    steps: int = 20
    rule: Rule | str = "left"
    norm: NormGradient | str = "true"
    """``frozen`` holds every norm's scale constant in the backward pass; its scores do not compare with ``true``."""
    ablation: Ablation | str = "corrupted"
    positions: bool = False
    """Keep one score for each position of the reader, not their sum."""
    seed: int = 0
    """Of ``random``."""

    def __post_init__(self) -> None:
        for name, allowed in (("method", Method), ("rule", Rule), ("norm", NormGradient), ("ablation", Ablation)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(f"{name}={getattr(self, name)!r}{nearest(getattr(self, name), get_args(allowed))}")
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: 1 or more")
        if self.positions and self.method in ("exact", "mask-gradient"):
            raise UsageError(f"method={self.method!r} scores edges over all positions together; leave positions off")

    def points(self) -> list[float]:
        """Return where between reference (0) and clean (1) gradients are taken."""
        if self.method == "eap":
            return [1.0]
        if self.method == "clean-corrupted":
            return [0.0, 1.0]
        shift = 0.5 if self.rule == "midpoint" else 0.0
        return [(step + shift) / self.steps for step in range(self.steps)]


def attribute(
    model: Model,
    pairs: Pairs,
    settings: Settings | None = None,
    *,
    grouping: Grouping | str = "shared",
    memory: int | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> CircuitGraph:
    """Return the graph of ``model`` with every edge's mean score over ``pairs``.

    >>> graph = attribute(model, pairs, Settings("eap-ig", steps=20))  # doctest: +SKIP
    >>> circuit = graph.keep(top(graph, 200))  # doctest: +SKIP
    """
    settings = settings or Settings()
    body, wiring = anatomy(model), Wiring.of(model, grouping)
    scores = edge_scores(body, wiring, pairs, settings, memory=memory, tick=tick).mean(0)
    return CircuitGraph.whole(header(body, wiring, pairs, settings), scores.float().cpu().numpy())


def header(body: Anatomy, wiring: Wiring, pairs: Pairs, settings: Settings) -> Header:
    """Return what a graph of these scores has to say about itself."""
    return Header(
        model=body.model.name,
        fingerprint=body.model.fingerprint,
        wiring=wiring,
        method=settings.method,
        ablation=settings.ablation,
        norm=settings.norm,
        post_norm="none" if body.blocks[0].after_attn.gain is None else "scale held",
        measure=pairs.measure,
        positions=tuple(map(str, range(pairs.n_pos))) if settings.positions else (),
        settings={"steps": settings.steps, "rule": settings.rule, "seed": settings.seed, "pairs": len(pairs)},
    )


def edge_scores(
    body: Anatomy,
    wiring: Wiring,
    pairs: Pairs,
    settings: Settings | None = None,
    *,
    memory: int | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "pair *pos writer reader"]:
    """Return the score of every edge for each pair, in units of the measure; 0 where there is no edge.

    memory: bytes to use; None takes a share of what is free. tick: called with steps done and in all.
    """
    settings = settings or Settings()
    if settings.method == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (len(pairs), *([pairs.n_pos] if settings.positions else []), *wiring.legal.shape)
        return torch.rand(shape, generator=generator) * torch.from_numpy(wiring.legal)
    if settings.method == "exact":
        return _exact(body, wiring, pairs, settings, memory)
    if settings.method == "mask-gradient":
        return _mask_gradient(body, wiring, pairs, settings, tick)
    instead = reference(body, pairs.corrupted, settings.ablation, pairs.clean)
    clean, before = record(body, pairs.clean, instead.start), beginning(body, wiring, pairs.clean, instead.start)
    points = settings.points()
    each = _bytes_per_row(body, pairs.n_pos - instead.start)
    tokens = len(pairs) * (pairs.n_pos - instead.start)
    wanted = len(points) if body.model.device.type == "cuda" else max(1, min(len(points), _TOKENS_AT_ONCE // tokens))
    at_once = plan(each * len(pairs), wanted, body.model.device, memory).at_once
    frozen = settings.norm == "frozen"
    total = Sums(body, wiring, clean, instead, positions=settings.positions, frozen=frozen)
    for start in range(0, len(points), at_once):
        chosen = points[start : start + at_once]
        total.add(*gradients(body, wiring, pairs, clean, instead, before, chosen, frozen=frozen))
        tick(start + len(chosen), len(points))
    scores = total.finish(len(points))
    if not settings.positions:
        return scores
    return torch.cat([scores.new_zeros(len(pairs), instead.start, *wiring.legal.shape), scores], 1)


def _bytes_per_row(body: Anatomy, n_pos: int) -> int:
    """Estimate what a forward and backward pass keeps for one prompt."""
    model = body.model
    width = 12 * model.d_model + 5 * model.layout.dims("neurons")[0]
    return model.dtype.itemsize * (n_pos * width * model.n_layers + 4 * model.vocab_size)


def _mask_gradient(
    body: Anatomy, wiring: Wiring, pairs: Pairs, settings: Settings, tick: Callable[[int, int], None]
) -> Float[Tensor, "pair writer reader"]:
    instead = reference(body, pairs.corrupted, settings.ablation, pairs.clean)
    points = settings.points()
    scores = torch.zeros(len(pairs), *wiring.legal.shape, device=body.model.device)
    for row in range(len(pairs)):
        alone, one = pairs[row : row + 1], instead.rows(slice(row, row + 1))
        for done, point in enumerate(points):
            with torch.enable_grad():
                mask = torch.full((1, *wiring.legal.shape), point, device=scores.device, requires_grad=True)
                answer = alone.value(run(body, wiring, alone.clean, mask, one)).sum()
                scores[row] += torch.autograd.grad(answer, mask)[0][0] / len(points)
            tick(row * len(points) + done + 1, len(pairs) * len(points))
    return scores


def _exact(
    body: Anatomy, wiring: Wiring, pairs: Pairs, settings: Settings, memory: int | None
) -> Float[Tensor, "pair writer reader"]:
    instead = reference(body, pairs.corrupted, settings.ablation, pairs.clean)
    edges = torch.from_numpy(wiring.legal).nonzero()
    scores = torch.zeros(len(pairs), *wiring.legal.shape, device=body.model.device)
    with torch.no_grad():
        whole = pairs.value(body.model.hf(input_ids=pairs.clean.to(body.model.device), logits_to_keep=1).logits[:, -1])
        for chunk in edges.split(256):
            masks = torch.ones(len(chunk), *wiring.legal.shape, dtype=torch.bool)
            masks[torch.arange(len(chunk)), chunk[:, 0], chunk[:, 1]] = False
            values = pairs.value(run(body, wiring, pairs.clean, masks, instead, memory=memory))
            scores[:, chunk[:, 0], chunk[:, 1]] = (whole - values).T
    return scores
