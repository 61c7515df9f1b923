"""Train a sparse dictionary on a stream of activations.

Each step takes a batch of rows, scales it so that the mean squared norm of a row is its width (one constant, kept in
the dictionary), and descends

    loss = |x - x_hat|^2 / |x - mean|^2  +  aux_weight * the same for dead latents on what is left  (topk, batchtopk)
    loss = ...                           +  l1 * sum |values| * |atom|                              (relu, gated)
    loss = ...                           +  l0 * number active, by a straight-through step           (jumprelu)

TopK keeps the k largest of each row, BatchTopK the k * rows largest of the batch (saved as JumpReLU at the mean of
the smallest value kept). Only the encoder's product is dense: decoding and all gradients touch the k active latents
of a row, as sparse matrix products. Atoms are kept at unit norm.

A transcoder learns to write one place from another: rows come as pairs (what it reads, what it writes), ``x_hat`` is
compared with the second, the bias is not subtracted at the input, and with ``skip`` a matrix goes past the latents.
Both places have their constant; they are folded into the weights at the end.

A latent is dead when it was silent for ``dead_after`` rows; the ``aux_k`` strongest dead ones learn the residual.
Sources: peers page of dictionaries, section 3.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Provenance
from cutaway.features.kernels import by_latent, decoded, summed
from cutaway.features.sparse import SparseDictionary

Kind = Literal["topk", "batchtopk", "relu", "jumprelu", "gated"]
_BANDWIDTH = 0.05
_RATE_AT = 2**14


@dataclass(frozen=True)
class TrainConfig:
    """How a dictionary is trained."""

    n_latents: int = 4608
    kind: Kind | str = "topk"
    k: int = 32
    batch: int = 4096
    """Rows in a step."""
    rate: float | None = None
    """Adam's; None takes 2e-4 / sqrt(n_latents / 2^14)."""
    warm_up: int = 100
    """Steps of linear warm-up."""
    cool_down: float = 0.2
    """Share of the steps at the end over which the rate falls to zero; needs ``steps``."""
    steps: int | None = None
    """None: until the rows end."""
    l1: float = 3.0
    """Of relu and gated."""
    l0: float = 0.03
    """Of jumprelu."""
    aux_k: int | None = None
    """None takes half the width."""
    aux_weight: float = 1 / 32
    dead_after: int = 500_000
    """Rows without a sound."""
    skip: bool = False
    """Of transcoders: a matrix from input to output beside the latents."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"kind={self.kind!r}{nearest(self.kind, get_args(Kind))}")
        for name in ("n_latents", "k", "batch", "dead_after"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
        if self.k > self.n_latents:
            raise UsageError(f"k={self.k}: at most n_latents={self.n_latents}")
        if self.rate is not None and not 0 < self.rate < 1:
            raise UsageError(f"rate={self.rate}: between 0 and 1")

    def rate_at(self, step: int) -> float:
        """Return Adam's rate at a step, counted from 0."""
        rate = 2e-4 / math.sqrt(self.n_latents / _RATE_AT) if self.rate is None else self.rate
        rate *= min(1.0, (step + 1) / max(1, self.warm_up))
        if self.steps is not None and self.cool_down > 0:
            rate *= min(1.0, (self.steps - step) / (self.cool_down * self.steps))
        return rate


@dataclass(frozen=True)
class Step:
    """What one step measured."""

    step: int
    rows: int
    """Seen so far."""
    fvu: float
    """Share of the variance that the reconstruction misses, on this batch before the step."""
    l0: float
    dead: int


@dataclass(frozen=True)
class Trained:
    """A dictionary and how it came about."""

    dictionary: SparseDictionary
    history: tuple[Step, ...]
    complete: bool = True
    """False when Ctrl-C ended it early."""

    def __repr__(self) -> str:
        last = self.history[-1]
        return f"Trained({self.dictionary!r}, {last.rows:,} rows, fvu {last.fvu:.3f}, {last.dead} dead)"


def train(
    rows: Iterable[Tensor | tuple[Tensor, Tensor]],
    config: TrainConfig | None = None,
    *,
    provenance: Provenance | None = None,
    tick: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train a dictionary on ``rows``, chunks [row d_model] of any length, mixed already (see `harvest`).

    Chunks that are pairs of matrices, what is read and what is written, train a transcoder.

    Ctrl-C returns what was learnt so far. UsageError for rows too few for one batch, with NaN or all alike.
    """
    config = config or TrainConfig()
    trainer: Trainer | None = None
    history: list[Step] = []
    complete = True
    try:
        for x, y in paired_batches(rows, config.batch):
            trainer = trainer or Trainer(x, config, y)
            history.append(trainer.step(x, y))
            tick(history[-1])
            if config.steps is not None and len(history) >= config.steps:
                break
    except KeyboardInterrupt:
        complete = False
    if trainer is None or not history:
        raise UsageError(f"rows: fewer than one batch of {config.batch}; pass more, or a smaller batch")
    about = replace(
        provenance or Provenance(),
        tokens=history[-1].rows,
        settings={key: "auto" if value is None else value for key, value in asdict(config).items()},
    )
    return Trained(trainer.finish(about), tuple(history), complete)


def batches(rows: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield ``rows``, chunks [row d_model] of any length, in batches of ``size``; the rest at the end is dropped."""
    left: list[Tensor] = []
    held = 0
    for chunk in rows:
        left.append(chunk)
        held += len(chunk)
        while held >= size:
            joined = torch.cat(left) if len(left) > 1 else left[0]
            yield joined[:size]
            left, held = [joined[size:]], held - size


def paired_batches(rows: Iterable[Tensor | tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield ``rows`` in batches of ``size``: what is read, and what is written where chunks are pairs."""
    width: list[int] = []

    def joined() -> Iterator[Tensor]:
        for chunk in rows:
            width[:] = [] if isinstance(chunk, Tensor) else [chunk[0].shape[1]]
            yield chunk if isinstance(chunk, Tensor) else torch.cat([each.float() for each in chunk], 1)

    for batch in batches(joined(), size):
        yield (batch[:, : width[0]], batch[:, width[0] :]) if width else (batch, None)


class Trainer:
    """A dictionary in training: one batch in, one `Step` out. Several can share the rows of one forward pass.

    With ``written`` it is a transcoder: every step then needs the rows of the place that it writes.
    """

    def __init__(
        self,
        first: Float[Tensor, "row d_in"],
        config: TrainConfig,
        written: Float[Tensor, "row d_out"] | None = None,
    ) -> None:
        if config.skip and written is None:
            raise UsageError("skip: for transcoders; a dictionary of one place would learn to copy it")
        check_rows(first)
        self.config, self.done, self.rows, self.transcoder = config, 0, 0, written is not None
        activation = {"batchtopk": "topk"}.get(config.kind, config.kind)
        target = first if written is None else written
        check_rows(target)
        self.scale, self.scale_out = _scale(first), _scale(target)
        self.dictionary = SparseDictionary(
            first.shape[1],
            config.n_latents,
            activation,
            k=config.k,
            d_out=target.shape[1],
            skip=config.skip,
            subtract_bias=not self.transcoder,
            normaliser="none" if self.transcoder else "scale",
            seed=config.seed,
        ).to(first.device)
        with torch.no_grad():
            if not self.transcoder:
                self.dictionary.scale.fill_(self.scale)
            self.dictionary.b_dec.copy_(target.float().mean(0) * self.scale_out)
        self.optimizer = torch.optim.Adam(self.dictionary.parameters(), betas=(0.9, 0.999), fused=True)
        self.silent = torch.zeros(config.n_latents, dtype=torch.long, device=first.device)
        self.smallest: float | None = None
        """Running mean of the smallest value that BatchTopK kept."""

    def step(self, batch: Float[Tensor, "row d_in"], written: Float[Tensor, "row d_out"] | None = None) -> Step:
        """Take one step; UsageError for NaN, and for a transcoder without what it is to write."""
        if (written is not None) != self.transcoder:
            raise UsageError("a transcoder needs the rows it writes at every step, another dictionary at none")
        check_rows(batch)
        x = batch.float() * self.scale
        y = x
        if written is not None:
            check_rows(written)
            y = written.float() * self.scale_out
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.done)
        self.optimizer.zero_grad(set_to_none=True)
        fvu, l0, active = (self._sparse if self.config.kind in ("topk", "batchtopk") else self._dense)(x, y)
        if not math.isfinite(fvu):
            raise CutawayError(
                f"training diverged at step {self.done}; lower the rate ({self.config.rate_at(self.done)})"
            )
        _tangent(self.dictionary.w_dec)
        self.optimizer.step()
        with torch.no_grad():
            self.dictionary.w_dec.div_(self.dictionary.w_dec.norm(dim=-1, keepdim=True))
        self.silent += len(batch)
        self.silent[active] = 0
        self.done, self.rows = self.done + 1, self.rows + len(batch)
        return Step(self.done - 1, self.rows, fvu, l0, int((self.silent >= self.config.dead_after).sum()))

    def finish(self, provenance: Provenance) -> SparseDictionary:
        """Return the dictionary; a BatchTopK becomes a JumpReLU at its mean smallest kept value."""
        made = self.dictionary
        if self.config.kind == "batchtopk":
            jump = SparseDictionary(
                made.d_in,
                made.n_latents,
                "jumprelu",
                d_out=made.d_out,
                skip=made.w_skip is not None,
                subtract_bias=made.subtract_bias,
                normaliser=made.normaliser,
            ).to(made.w_dec.device)
            jump.load_state_dict({**made.state_dict(), "threshold": torch.full_like(made.b_enc, self.smallest or 0.0)})
            made = jump
        if self.transcoder:
            self._fold(made)
        made.provenance = provenance
        return made.requires_grad_(False)

    @torch.no_grad()
    def _fold(self, made: SparseDictionary) -> None:
        """Move both constants of a transcoder into its weights: values come in the units of what is written."""
        ahead, back = self.scale / self.scale_out, 1 / self.scale_out
        for tensor, factor in (
            (made.w_enc, ahead),
            (made.w_skip, ahead),
            (made.b_enc, back),
            (made.b_mag, back),
            (made.threshold, back),
            (made.b_dec, back),
        ):
            if tensor is not None:
                tensor.mul_(factor)

    @torch.no_grad()
    def _sparse(self, x: Tensor, y: Tensor) -> tuple[float, float, Tensor]:
        """Set the gradients of TopK or BatchTopK by hand; return FVU, L0 and which latents are active."""
        made = self.dictionary
        centred = x if self.transcoder else x - made.b_dec
        pre = torch.addmm(made.b_enc, centred, made.w_enc.T)
        indices, values = self._chosen(pre)
        out, pull_of = decoded(indices, values, made.w_dec)
        missed = out + made.b_dec - y
        if made.w_skip is not None:
            missed += x @ made.w_skip.T
        spread = (y - y.mean(0)).square().sum()
        gradient = missed * (2 / spread)
        on = values > 0
        pull = pull_of(gradient) * on
        gathered = by_latent(indices, made.n_latents)
        made.w_dec.grad = gathered(values, gradient)
        made.w_enc.grad = gathered(pull, centred)
        made.b_enc.grad = summed(indices, pull, made.n_latents)
        made.b_dec.grad = gradient.sum(0)
        if not self.transcoder:
            made.b_dec.grad -= made.b_enc.grad @ made.w_enc
        if made.w_skip is not None:
            made.w_skip.grad = gradient.T @ x
        self._revive(pre, missed, centred)
        active = summed(indices, on.float(), made.n_latents) > 0
        return float(missed.square().sum() / spread), float(on.sum() / len(x)), active

    def _chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices and values [row slot] of the latents kept."""
        config = self.config
        if config.kind == "topk":
            top = pre.topk(config.k, dim=-1, sorted=False)
            return top.indices, top.values.relu()
        # The largest k * rows of the batch: found by threshold, laid out by row.
        flat = pre.relu().flatten()
        least = flat.kthvalue(flat.numel() - config.k * len(pre) + 1).values.clamp(min=1e-12)
        self.smallest = float(least) if self.smallest is None else 0.99 * self.smallest + 0.01 * float(least)
        width = int((pre >= least).sum(-1).max())
        top = pre.topk(max(1, width), dim=-1, sorted=False)
        return top.indices, top.values * (top.values >= least)

    def _revive(self, pre: Tensor, missed: Tensor, centred: Tensor) -> None:
        """Let the strongest dead latents learn what the others missed."""
        dead = (self.silent >= self.config.dead_after).nonzero()[:, 0]
        if len(dead) == 0:
            return
        made = self.dictionary
        k = min(made.d_out // 2 if self.config.aux_k is None else self.config.aux_k, len(dead))
        top = pre[:, dead].topk(k, dim=-1, sorted=False)
        indices, values = dead[top.indices], top.values.relu()
        out, pull_of = decoded(indices, values, made.w_dec)
        target = -missed
        gradient = (out - target) * (2 * self.config.aux_weight / (target - target.mean(0)).square().sum())
        pull = pull_of(gradient) * (values > 0)
        gathered = by_latent(indices, made.n_latents)
        assert made.w_dec.grad is not None
        assert made.w_enc.grad is not None
        assert made.b_enc.grad is not None
        made.w_dec.grad += gathered(values, gradient)
        made.w_enc.grad += gathered(pull, centred)
        made.b_enc.grad += summed(indices, pull, made.n_latents)

    def _dense(self, x: Tensor, y: Tensor) -> tuple[float, float, Tensor]:
        """Relu, gated and jumprelu by autograd."""
        made, config = self.dictionary, self.config
        pre = nn.functional.linear(x if self.transcoder else x - made.b_dec, made.w_enc, made.b_enc)
        spread = (y - y.mean(0)).square().sum()
        past = 0.0 if made.w_skip is None else x @ made.w_skip.T
        if config.kind == "jumprelu":
            assert made.threshold is not None
            values = _Jump.apply(pre, made.threshold)
            price = config.l0 * _Count.apply(pre, made.threshold).sum() / len(x)
        elif config.kind == "gated":
            assert made.r_mag is not None
            assert made.b_mag is not None
            linear = pre - made.b_enc
            values = (linear * made.r_mag.exp() + made.b_mag).relu() * (pre > 0)
            gate = pre.relu()
            alone = gate @ made.w_dec.detach() + made.b_dec.detach()
            price = config.l1 * gate.sum() / len(x) / y.shape[1] + (alone + past - y).square().sum() / spread
        else:
            values = pre.relu()
            price = config.l1 * values.sum() / len(x) / y.shape[1]
        missed = values @ made.w_dec + made.b_dec + past - y
        fvu = missed.square().sum() / spread
        (fvu + price).backward()
        active = (values > 0).any(0)
        return float(fvu.detach()), float((values > 0).sum() / len(x)), active


class _Jump(torch.autograd.Function):
    """pre where pre > threshold; the threshold's gradient by a rectangle of width `_BANDWIDTH` around the jump."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        near = (pre - threshold).abs() < _BANDWIDTH / 2
        return gradient * (pre > threshold), -(gradient * near * threshold / _BANDWIDTH).sum(0)


class _Count(torch.autograd.Function):
    """1 where pre > threshold, with the same rectangle."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *gradients: Tensor) -> tuple[None, Tensor]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        near = (pre - threshold).abs() < _BANDWIDTH / 2
        return None, -(gradient * near / _BANDWIDTH).sum(0)


def _scale(rows: Tensor) -> float:
    """Return the constant that brings the mean squared norm of a row to its width."""
    return float((rows.shape[1] / rows.float().square().sum(-1).mean()).sqrt())


def check_rows(batch: Tensor) -> None:
    """Raise UsageError for rows [row d] that nothing can be learnt from: NaN or infinity, or all of them alike."""
    if batch.ndim != 2 or not bool(torch.isfinite(batch).all()):
        raise UsageError("rows contain NaN or infinity, or are no matrix [row d]")
    if bool((batch == batch[:1]).all()):
        raise UsageError(f"the {len(batch)} rows of a batch are all alike: nothing can be learnt from them")


def _tangent(atoms: nn.Parameter) -> None:
    """Take out of the gradient what would change an atom's norm."""
    assert atoms.grad is not None
    with torch.no_grad():
        atoms.grad -= (atoms.grad * atoms).sum(-1, keepdim=True) * atoms
