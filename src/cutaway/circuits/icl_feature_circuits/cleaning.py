"""Task vector cleaning: which few atoms of a dictionary do what the task vector does.

1. theta = the encoder's pre-activations of the task vector.
2. w = theta where it exceeds the encoder's threshold, else 0; v = the decoding of w, bias and scale included.
3. Adam on loss(v added at the arrows of prompts without examples) + lambda |w|_1; only layers from the vector's own on
   are computed.
4. Stop after ``steps``, or when for ``patience`` steps neither fewer atoms were active nor the objective got better.

ReLU, JumpReLU and gated encoders keep their own thresholds. Where only the strongest are kept (TopK, or a dictionary
that offers nothing but `encode`), the atoms of the first encoding compete with threshold 0 and no other comes in: the k
largest of a shrinking theta would always be k.

Source: card, Method; the paper's section on task vector cleaning.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.task_vectors import Bench
from cutaway.errors import UsageError
from cutaway.features import Codes, Dictionary, SparseDictionary

_BETTER = 1e-3
"""The objective's fall that counts as one, nats."""


@dataclass(frozen=True)
class Moment:
    """One step of the search."""

    objective: float
    loss: float
    l1: float
    l0: int


@dataclass(frozen=True, eq=False)
class Cleaned:
    """A task vector as few atoms."""

    latents: tuple[int, ...]
    """Active atoms, largest first."""
    weights: tuple[float, ...]
    vector: Float[Tensor, " d_model"]
    history: tuple[Moment, ...]
    penalty: float
    """lambda."""
    stopped: Literal["steps", "patience", "empty", "interrupted"]
    complete: bool = True

    @property
    def l0(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        last = self.history[-1]
        return f"Cleaned({self.l0} atoms, loss {last.loss:.3f} after {len(self.history)} steps, {self.stopped})"

    def to_dict(self) -> dict[str, Any]:
        kept = {"latents": list(self.latents), "weights": list(self.weights), "penalty": self.penalty}
        return {**kept, "stopped": self.stopped, "history": [asdict(each) for each in self.history]}


def check_width(dictionary: Dictionary, width: int, what: str) -> None:
    """UsageError where a dictionary does not read and write vectors of ``width``."""
    d_out = dictionary.atoms.shape[1]
    if dictionary.d_in != width or d_out != width:
        raise UsageError(
            f"{what} has {width} dimensions; this dictionary reads {dictionary.d_in} and writes {d_out}. It belongs to"
            " another model or site"
        )


def clean(
    bench: Bench,
    dictionary: Dictionary,
    vector: Float[Tensor, " d_model"],
    *,
    penalty: float = 0.05,
    rate: float = 0.05,
    steps: int = 1000,
    patience: int = 150,
    start: Literal["vector", "random"] = "vector",
    seed: int = 0,
    report: Callable[[int, Moment], None] = lambda step, moment: None,
) -> Cleaned:
    """Find the few atoms that lower the loss of ``bench`` as the task vector does.

    start: ``random`` draws as many atoms as the vector's own encoding has, with the same weights.
    report: called after each step.
    """
    check_width(dictionary, len(vector), "the task vector")
    if penalty < 0 or rate <= 0 or steps < 1 or patience < 1:
        raise UsageError(f"penalty={penalty} (0 or more), rate={rate} (above 0), steps={steps}, patience={patience}")
    theta, threshold = start_of(dictionary, vector)
    if start == "random":
        theta, threshold = _shuffled(theta, threshold, seed)
    theta.requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=rate)
    history: list[Moment] = []
    fewest, best, since = dictionary.n_latents + 1, float("inf"), 0
    stopped: Literal["steps", "patience", "empty", "interrupted"] = "steps"
    last = theta.detach().clone()
    try:
        for step in range(steps):
            weights = theta * (theta > threshold)
            loss = bench.losses(decoded(dictionary, weights, vector)).mean()
            l1 = weights.abs().sum()
            objective = loss + penalty * l1
            moment = Moment(objective.item(), loss.item(), l1.item(), int((weights != 0).sum()))
            history.append(moment)
            last = theta.detach().clone()
            report(step, moment)
            better = moment.l0 < fewest or moment.objective < best - _BETTER
            fewest = min(fewest, moment.l0)
            best, since = min(best, moment.objective), 0 if better else since + 1
            if moment.l0 == 0 or since >= patience:
                stopped = "empty" if moment.l0 == 0 else "patience"
                break
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
    except KeyboardInterrupt:
        stopped = "interrupted"
        if not history:
            raise
    return _cleaned(dictionary, last, threshold, vector, history, penalty, stopped)


def start_of(
    dictionary: Dictionary, vector: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " latent"], Float[Tensor, " latent"]]:
    """Return theta and the thresholds above which an entry of it is active."""
    with torch.no_grad():
        if isinstance(dictionary, SparseDictionary) and dictionary.activation != "topk":
            pre = dictionary.pre(vector[None])[0]
            if dictionary.activation == "jumprelu":
                assert dictionary.threshold is not None
                return pre.clone(), dictionary.threshold.detach().clone()
            if dictionary.activation == "gated":
                assert dictionary.r_mag is not None
                assert dictionary.b_mag is not None
                # A gate that opens at pre = 0 is a jump of the magnitude at what it is there.
                gain = dictionary.r_mag.exp()
                magnitude = (pre - dictionary.b_enc) * gain + dictionary.b_mag
                return magnitude, (dictionary.b_mag - dictionary.b_enc * gain).clamp(min=0)
            return pre.clone(), torch.zeros_like(pre)
        theta = dictionary.encode(vector[None]).dense()[0].clone()
        return theta, torch.zeros_like(theta)


def decoded(
    dictionary: Dictionary, weights: Float[Tensor, " latent"], vector: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """Decode one row of weights; only active atoms are read."""
    active = weights.detach().nonzero()[:, 0]
    if len(active) == 0:
        active = torch.zeros(1, dtype=torch.long, device=weights.device)
    codes = Codes(active[None], weights[active][None], dictionary.n_latents)
    return dictionary.decode(codes, vector[None])[0]


@torch.no_grad()
def reconstruction(
    dictionary: Dictionary, vector: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " d_model"], tuple[int, ...]]:
    """The task vector through encoder and decoder, and the atoms it takes."""
    check_width(dictionary, len(vector), "the task vector")
    codes = dictionary.encode(vector[None])
    active = codes.indices[0][codes.values[0] != 0]
    return dictionary.decode(codes, vector[None])[0], tuple(active.tolist())


@torch.no_grad()
def pursuit(dictionary: Dictionary, vector: Float[Tensor, " d_model"], k: int) -> tuple[Tensor, tuple[int, ...]]:
    """Positive gradient pursuit: the vector [d_model] from at most ``k`` atoms, and which they are.

    Each step takes in the atom that agrees most with what is left, then moves all coefficients along their gradient by
    an exact line search, and keeps them positive. Ends early where no atom agrees.
    """
    check_width(dictionary, len(vector), "the task vector")
    if k < 1:
        raise UsageError(f"k={k}: at least one atom")
    atoms, zeros = dictionary.atoms, torch.zeros(dictionary.n_latents, device=vector.device, dtype=vector.dtype)
    base = decoded(dictionary, zeros, vector)
    left, chosen = vector - base, list[int]()
    weights = zeros[:0]
    for _ in range(min(k, dictionary.n_latents)):
        agree = atoms @ left
        agree[chosen] = -torch.inf
        best = int(agree.argmax())
        if agree[best] <= 0:
            break
        chosen.append(best)
        used = atoms[chosen]
        gradient = used @ left
        move = gradient @ used
        weights = torch.cat([weights, zeros[:1]])
        weights = (weights + (move @ left) / (move @ move).clamp(min=1e-12) * gradient).clamp(min=0)
        left = vector - base - weights @ used
    active = [latent for latent, weight in zip(chosen, weights.tolist(), strict=True) if weight > 0]
    return vector - left, tuple(active)


def random_atoms(dictionary: Dictionary, found: Cleaned, vector: Tensor, seed: int) -> Float[Tensor, " d_model"]:
    """As many atoms as ``found`` has, with its weights, drawn among the others: what any atoms would do."""
    rng = np.random.default_rng([seed, 3])
    others = np.setdiff1d(np.arange(dictionary.n_latents), found.latents)
    drawn = torch.as_tensor(rng.permutation(others)[: found.l0], device=vector.device)
    weights = torch.zeros(dictionary.n_latents, device=vector.device, dtype=vector.dtype)
    weights[drawn] = torch.tensor(found.weights[: len(drawn)], device=vector.device, dtype=vector.dtype)
    with torch.no_grad():
        return decoded(dictionary, weights, vector)


def _shuffled(theta: Tensor, threshold: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The active entries at random places; every other entry inactive."""
    order = torch.as_tensor(np.random.default_rng([seed, 1]).permutation(len(theta)), device=theta.device)
    active = theta * (theta > threshold)
    return active[order].clone(), torch.zeros_like(threshold)


def _cleaned(
    dictionary: Dictionary,
    theta: Tensor,
    threshold: Tensor,
    vector: Tensor,
    history: list[Moment],
    penalty: float,
    stopped: Literal["steps", "patience", "empty", "interrupted"],
) -> Cleaned:
    with torch.no_grad():
        weights = theta * (theta > threshold)
        out = decoded(dictionary, weights, vector)
    order = weights.argsort(descending=True)
    kept = [int(i) for i in order if weights[i] != 0]
    complete = stopped != "interrupted"
    values = tuple(weights[kept].tolist())
    return Cleaned(tuple(kept), values, out, tuple(history), penalty, stopped, complete)
