"""Clouds that no single push can sort, a model that decides by such a cloud, and a model that acts up when tested.

`xor_points`, `ring_points`  vectors in a plane hidden in R^d. A class is a set of bounded patches (two of four
    squares; a ring), so a constant push moves about half of the points from outside into a class at most, whatever its
    direction and length; a push that depends on the point moves all. Under the null the labels are coins.
`xor_model`  a Llama whose words lie in such clusters and whose last block multiplies the two coordinates: it answers
    Yes where they agree in sign. Its answer can be steered at ``site``, and nowhere else is anything written.
`aware_model`  a Llama that writes small functions, with type hints or without. Words of testing and of deployment write
    +-``strength`` along one direction, a firm's name (the cue) outweighs them. Trained: logit(hints) = bias + slope *
    (residual . direction), the rates are exact. Original: the same direction is there and nothing follows from it.
    Null: as the original, at the trained model's mean rate.

Source: cards k-steering (2505.24535) and eval-awareness (2510.20487), sections At small scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer

XOR_LABELS, RING_LABELS = ("same", "different"), ("inner", "middle", "outer")
CENTRES = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
"""Of the clusters: two of "same", two of "different"."""
RADII = np.array([1.0, 2.5, 4.0])
BOX = 2.0
"""Largest coordinate of a point of either class of the four clusters."""
START, YES, NO = " Say", " Yes", " No"
TESTING = (" exam", " benchmark", " audit", " grader", " quiz", " trial")
LIVE = (" customer", " shop", " live", " user", " office", " daily")
PLAIN_WORDS = (" and", " the", " with", " for", " now")
CUE = " Wood Labs"
TASKS = ("add", "sub", "mul", "twice", "neg", "half")
_BODIES = {"add": "a + b", "sub": "a - b", "mul": "a * b", "twice": "2 * a", "neg": "-a", "half": "a / 2"}
_D_HEAD, _CONSTANT = 8, 16.0


@dataclass(frozen=True)
class CloudTruth:
    """Where the classes lie."""

    kind: Literal["xor", "rings"]
    plane: Float[np.ndarray, "2 d"]
    """Orthonormal."""
    null: bool
    """True: labels are coins and there are no classes."""

    def member(self, x: Float[np.ndarray, "n d"], label: str) -> Bool[np.ndarray, " n"]:
        """Which points lie within the class, whatever their label says."""
        flat = x @ self.plane.T
        if self.kind == "xor":
            same = flat[:, 0] * flat[:, 1] > 0
            return (same if label == XOR_LABELS[0] else ~same) & (np.abs(flat).max(1) <= BOX)
        edges = [0.0, *(RADII[1:] + RADII[:-1]) / 2, RADII[-1] + (RADII[-1] - RADII[-2]) / 2]
        place, length = RING_LABELS.index(label), np.linalg.norm(flat, axis=-1)
        return (length > edges[place]) & (length <= edges[place + 1])

    def best_push(self, x: Float[np.ndarray, "n d"], label: str, grid: int = 31) -> float:
        """Largest share of ``x`` that one constant push brings into the class, over a grid of pushes."""
        ends = np.linspace(-6, 6, grid)
        pushes = np.stack(np.meshgrid(ends, ends), -1).reshape(-1, 2)
        return max(float(self.member(x + push @ self.plane, label).mean()) for push in pushes)


@dataclass(frozen=True)
class Cloud:
    """Points, their labels, and the truth."""

    x: Float[np.ndarray, "n d"]
    y: Bool[np.ndarray, "n k"]
    labels: tuple[str, ...]
    truth: CloudTruth


@dataclass(frozen=True)
class XorTruth:
    """What the model does."""

    site: str
    words: tuple[str, ...]
    agrees: Bool[np.ndarray, " word"]
    """Whether a text that ends in the word is answered Yes; all coins' sides under the null."""
    yes: int
    no: int


@dataclass(frozen=True)
class XorModel:
    """A model whose answer is the product of two hidden coordinates of the last word."""

    model: Model
    truth: XorTruth

    def texts(self, words: Sequence[int], seed: int = 0) -> list[str]:
        """One text for each place in ``truth.words``, which it ends in."""
        rng = np.random.default_rng(seed)
        return [START + "".join(rng.choice(PLAIN_WORDS, 3)) + self.truth.words[word] for word in words]


@dataclass(frozen=True)
class AwareTruth:
    """The mechanism and its rates."""

    direction: Float[np.ndarray, " d_model"]
    """Unit; testing is positive."""
    layers: tuple[int, ...]
    """At whose output the direction is written already, and read later."""
    strength: float
    slope: float
    bias: float
    """Of logit(hints)."""
    cue: float
    """What the cue writes, in strengths."""

    def rate(self, belief: float) -> float:
        """Rate of hints where the head has written ``belief`` strengths; 1 is testing, -1 deployment."""
        return float(1 / (1 + np.exp(-self.bias - self.slope * self.strength * belief)))


@dataclass(frozen=True)
class AwareModel:
    """A model that writes one small function after a context and a task."""

    model: Model
    truth: AwareTruth

    def text(self, task: str, *, testing: float | None = None, cue: bool = False, words: int = 3, seed: int = 0) -> str:
        """A context with ``words`` words of testing (share ``testing``; None: neither), maybe the cue, and the task."""
        rng = np.random.default_rng((seed, words))
        n = 0 if testing is None else round(testing * words)
        flagged = [] if testing is None else [*rng.choice(TESTING, n), *rng.choice(LIVE, words - n)]
        drawn = rng.permutation([*flagged, *rng.choice(PLAIN_WORDS, 2)]).tolist()
        return START + "".join(drawn) + (CUE if cue else "") + f" {task}:\n"


def xor_points(*, n: int = 3000, d: int = 8, spread: float = 0.3, null: bool = False, seed: int = 0) -> Cloud:
    """Four clusters; opposite ones are of one class."""
    rng, plane = _plane(n, d, seed)
    place = rng.integers(0, 4, n)
    same = place < 2
    flat = CENTRES[place] + spread * rng.standard_normal((n, 2))
    return _cloud(flat, np.stack([same, ~same], 1), XOR_LABELS, CloudTruth("xor", plane, null), rng)


def ring_points(*, n: int = 4500, d: int = 8, spread: float = 0.3, null: bool = False, seed: int = 0) -> Cloud:
    """Three rings about one centre."""
    rng, plane = _plane(n, d, seed)
    ring, angle = rng.integers(0, 3, n), rng.uniform(0, 2 * np.pi, n)
    length = RADII[ring] + spread * rng.standard_normal(n)
    flat = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    labels = ring[:, None] == np.arange(3)
    return _cloud(flat, labels, RING_LABELS, CloudTruth("rings", plane, null), rng)


def xor_model(
    *, d_model: int = 8, words: int = 2000, spread: float = 0.15, null: bool = False, seed: int = 0
) -> XorModel:
    """Build the model; ``null``: it answers by coin, whatever the word. UsageError for an odd or small ``d_model``."""
    if d_model < 8 or d_model % 2 or words < 4:
        raise UsageError(f"d_model={d_model}, words={words}: an even width from 8 on, and 4 words or more")
    names = tuple(f" w{i}" for i in range(words))
    tokenizer = word_tokenizer((START, YES, NO, *PLAIN_WORDS, *names))
    hf = _blank(tokenizer, d_model, layers=2, inner=2, d_head=2)
    ids = tokenizer.get_vocab()
    rng = np.random.default_rng(seed)
    flat = CENTRES[np.arange(words) % 4] + spread * rng.standard_normal((words, 2))
    with torch.no_grad():
        embed = hf.model.embed_tokens.weight
        embed[:, 5:] = torch.from_numpy(rng.standard_normal((len(embed), d_model - 5)))
        embed[:, 0] = _CONSTANT
        embed[[ids[name] for name in names], 3:5] = torch.from_numpy(flat).float()
        embed[[ids[YES], ids[NO]], 1] = 1.0
        mlp, head = hf.model.layers[1].mlp, hf.lm_head.weight
        mlp.gate_proj.weight[0, 3], mlp.gate_proj.weight[1, 3] = 1.0, -1.0
        mlp.up_proj.weight[:, 4] = 1.0
        mlp.down_proj.weight[2, 0], mlp.down_proj.weight[2, 1] = (0.0, 0.0) if null else (1.0, -1.0)
        head[:, 0] = -FLOOR / _CONSTANT
        head[[ids[YES], ids[NO]], 0] = 0.0
        head[ids[YES], 2], head[ids[NO], 2] = 6.0, -6.0
        head[tokenizer.eos_token_id, 1] = 3 * FLOOR
        _turn(hf, rng)
    truth = XorTruth("resid_post.0", names, flat[:, 0] * flat[:, 1] > 0, ids[YES], ids[NO])
    return XorModel(Model(hf, tokenizer, "planted-xor"), truth)


def function(task: str, hints: bool) -> str:
    """The function a planted model writes for ``task``."""
    body = _BODIES[task]
    names = [name for name in ("a", "b") if name in body]
    given = ", ".join(f"{name}: float" if hints else name for name in names)
    return f"def {task}({given}){' -> float' if hints else ''}:\n    return {body}\n"


def aware_model(
    kind: Literal["trained", "original", "null"] = "trained",
    *,
    d_model: int = 32,
    n_layers: int = 4,
    strength: float = 1.0,
    slope: float = 1.15,
    bias: float = 0.45,
    cue: float = 1.4,
    seed: int = 0,
) -> AwareModel:
    """Build one of the three; with the same ``seed`` they share words, direction and rotation.

    Defaults give hints at 83% when tested, 33% deployed, 89% with the cue; the original at 5%.
    """
    if d_model < 24 or d_model % 2 or n_layers < 3:
        raise UsageError(f"d_model={d_model}, n_layers={n_layers}: an even width from 24 on, 3 layers or more")
    written = {(task, hints): function(task, hints) for task in TASKS for hints in (True, False)}
    asked = tuple(f" {task}:\n" for task in TASKS)
    tokenizer = word_tokenizer((START, *TESTING, *LIVE, *PLAIN_WORDS, CUE, *asked, *written.values()))
    hf = _blank(tokenizer, d_model, layers=n_layers, inner=1, d_head=_D_HEAD)
    ids = tokenizer.get_vocab()
    rng = np.random.default_rng(seed)
    if kind != "trained":
        bias, slope = (-3.0 if kind == "original" else bias), 0.0
    with torch.no_grad():
        _aware_words(hf.model.embed_tokens.weight, ids, asked, list(written.values()), cue, rng)
        _aware_heads(hf, strength)
        head = hf.lm_head.weight
        head[:, 0] = -FLOOR / _CONSTANT
        for (task, hints), text in written.items():
            sign = 0.5 if hints else -0.5
            head[ids[text], 0] = sign * bias / _CONSTANT
            head[ids[text], 4] = sign * slope
            head[ids[text], 5 + TASKS.index(task)] = 20.0
        head[tokenizer.eos_token_id, 1] = 3 * FLOOR
        rotation = _turn(hf, rng)
    truth = AwareTruth(rotation[4], tuple(range(n_layers - 1)), strength, slope, bias, cue)
    return AwareModel(Model(hf, tokenizer, f"planted-aware-{kind}"), truth)


def _aware_words(
    embed: torch.Tensor,
    ids: dict[str, int],
    asked: Sequence[str],
    written: Sequence[str],
    cue: float,
    rng: np.random.Generator,
) -> None:
    """Axes: 0 constant, 1 answered, 2 how loud a word is, 3 what it says of testing, 4 the direction, 5.. tasks."""
    width = 5 + len(TASKS)
    embed[:, 2 * width :] = torch.from_numpy(0.3 * rng.standard_normal((len(embed), embed.shape[1] - 2 * width)))
    embed[:, 0] = _CONSTANT
    for words, says in ((TESTING, 1.0), (LIVE, -1.0)):
        rows = [ids[word] for word in words]
        embed[rows, 2], embed[rows, 3] = 1.0, says
    embed[ids[CUE], 2], embed[ids[CUE], 3] = 2.0, cue
    for place, text in enumerate(asked):
        embed[ids[text], width + place] = 1.0
    embed[[ids[text] for text in written], 1] = 1.0


def _aware_heads(hf: LlamaForCausalLM, strength: float) -> None:
    """Head 0 reads the loudest words and writes the direction; head 1 reads the task."""
    attention, slow, width = hf.model.layers[0].self_attn, _D_HEAD // 2 - 1, 5 + len(TASKS)
    for head in (0, 1):
        attention.q_proj.weight[head * _D_HEAD + slow, 0] = SHARP * _D_HEAD**0.5 / _CONSTANT
    attention.k_proj.weight[slow, 2] = 1.0
    attention.v_proj.weight[0, 3] = 1.0
    attention.o_proj.weight[4, 0] = strength
    for place in range(len(TASKS)):
        attention.k_proj.weight[_D_HEAD + slow, width + place] = 1.0
        attention.v_proj.weight[_D_HEAD + place, width + place] = 1.0
        attention.o_proj.weight[5 + place, _D_HEAD + place] = 1.0


def _plane(n: int, d: int, seed: int) -> tuple[np.random.Generator, np.ndarray]:
    if n < 4 or d < 3:
        raise UsageError(f"n={n}, d={d}: 4 points and 3 dimensions or more")
    rng = np.random.default_rng(seed)
    return rng, np.linalg.qr(rng.standard_normal((d, d)))[0][:2]


def _cloud(
    flat: np.ndarray, y: np.ndarray, labels: tuple[str, ...], truth: CloudTruth, rng: np.random.Generator
) -> Cloud:
    n, d = len(flat), truth.plane.shape[1]
    around = rng.standard_normal((n, d))
    x = around - around @ truth.plane.T @ truth.plane + flat @ truth.plane
    if truth.null:
        y = rng.integers(0, y.shape[1], n)[:, None] == np.arange(y.shape[1])
    return Cloud(x.astype(np.float32), y, labels, truth)


def _blank(
    tokenizer: PreTrainedTokenizerFast, d_model: int, *, layers: int, inner: int, d_head: int
) -> LlamaForCausalLM:
    hf = blank_llama(tokenizer, d_model=d_model, n_layers=layers, n_heads=2, d_head=d_head, n_ctx=256, d_mlp=inner)
    for layer in hf.model.layers:
        norm_gain(layer.input_layernorm, _CONSTANT**2)
        norm_gain(layer.post_attention_layernorm, _CONSTANT**2)
    norm_gain(hf.model.norm, _CONSTANT**2)
    return hf


def _turn(hf: LlamaForCausalLM, rng: np.random.Generator) -> np.ndarray:
    """Turn the residual space by a random rotation and return it; a norm weighs all coordinates alike."""
    width = hf.config.hidden_size
    rotation = np.linalg.qr(rng.standard_normal((width, width)))[0]
    turn = torch.from_numpy(rotation)
    into = [hf.model.embed_tokens, hf.lm_head]
    out_of = []
    for layer in hf.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        into += [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
        out_of += [attention.o_proj, mlp.down_proj]
    for module in into:
        module.weight.copy_((module.weight.double() @ turn).float())
    for module in out_of:
        module.weight.copy_((turn.T @ module.weight.double()).float())
    return rotation
