"""A three-layer model that learns a mapping from examples, with known detectors, executors and dictionary.

Prompts are ``x -> y`` lines of symbols; task ``k`` maps symbol ``i`` to symbol ``i + k`` (mod the alphabet).

1. Layer 0, two heads look one and two tokens back and write which input symbol stands there; the MLP multiplies
   that with the output symbol at hand: at the last token of ``x -> x + k`` it writes the **detector** of task k.
2. Layer 1, one head looks from arrows at all output symbols before it and writes the mean of their detectors as
   **executors**. Other tokens look at the first token, which carries nothing.
3. Layer 2, the MLP multiplies executor and input symbol at the arrow and writes the answer's logit.

So task k is detected at output tokens in ``resid_pre.1``, carried by ``attn_out.1`` and executed at arrows from
``resid_pre.2`` on. All directions are orthogonal, and turned by a random rotation. The dictionary has one atom for each
direction, and decoys: random atoms, and half-and-half mixtures of an executor with something else.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import EOS, FLOOR, PAD, SHARP, norm_gain, quiet_llama, word_tokenizer

HEADER = ("Follow", " the", " pattern", ":")
_ARROW = " ->"
_SYMBOLS = tuple(f"{c}{v}" for v in "aeiou" for c in "bdfgklmnp")
_D_HEAD = 64
_N_CTX = 256
_FAST = 4
_TURN = 1e20
"""Rotary base: pairs 0 to 3 turn fast enough to tell distances, from pair 9 on nothing turns."""
_SLOW = 9
_GATE = 20.0
"""silu(20) is 20 to 1e-7: the gate multiplies."""
_PROMOTE = 6.0
"""Log-odds of the right answer against each other one: high, and not so high that no gradient is left."""


@dataclass(frozen=True)
class InContextTruth:
    """What is where: rows of the dictionary, and the sites at which they are at work."""

    detectors: tuple[int, ...]
    """Latent of each task's detector."""
    executors: tuple[int, ...]
    """Latent of each task's executor."""
    detect_at: str = "resid_pre.1"
    carry_at: str = "attn_out.1"
    execute_at: str = "resid_pre.2"


@dataclass(frozen=True, eq=False)
class InContext:
    """A planted in-context learner."""

    model: Model
    truth: InContextTruth
    atoms: Float[Tensor, "latent d_model"]
    """Unit vectors: all planted directions first, decoys after them."""
    n_tasks: int
    symbols: tuple[str, ...]

    def pairs(self, task: int) -> tuple[tuple[str, str], ...]:
        """Every pair of ``task``; task numbers from `n_tasks` on are mappings that the model does not know."""
        n = len(self.symbols)
        if not 0 <= task < n:
            raise UsageError(f"task={task}: 0 to {n - 1}")
        return tuple((x, self.symbols[(i + task) % n]) for i, x in enumerate(self.symbols))


def in_context(
    n_tasks: int = 8, n_symbols: int = 24, *, decoys: int = 64, null: bool = False, seed: int = 0
) -> InContext:
    """Build a planted in-context learner.

    n_tasks: mappings it knows, 1 to n_symbols - 1.
    n_symbols: size of the alphabet, 2 to 45.
    decoys: dictionary atoms beyond the planted ones; half random, half mixtures with an executor.
    null: tasks are detected but never carried or executed, so no task vector has anything to say.
    seed: of the rotation and the decoys.
    """
    if not 2 <= n_symbols <= len(_SYMBOLS):
        raise UsageError(f"n_symbols={n_symbols}: 2 to {len(_SYMBOLS)}")
    if not 1 <= n_tasks < n_symbols:
        raise UsageError(f"n_tasks={n_tasks}: 1 to {n_symbols - 1}")
    if decoys < 0:
        raise UsageError(f"decoys={decoys}: 0 or more")
    symbols = _SYMBOLS[:n_symbols]
    tokenizer = word_tokenizer((*HEADER, _ARROW, *symbols, *(f" {symbol}" for symbol in symbols)))
    axes = _Axes(n_symbols, n_tasks)
    hf = _blank(len(tokenizer), axes, *(tokenizer.get_vocab()[word] for word in (EOS, PAD)))
    with torch.no_grad():
        _frame(hf, axes, [tokenizer.get_vocab()[word] for word in (*HEADER, _ARROW)])
        _copying_heads(hf, axes)
        _multiply(hf, 0, [(axes.output(i + k), axes.seen(i), axes.detector(k)) for i, k in axes.mappings])
        if not null:
            _carry(hf, axes)
            _multiply(hf, 2, [(axes.executor(k), axes.seen(i), axes.answer(i + k)) for i, k in axes.mappings])
        generator = torch.Generator().manual_seed(seed)
        turned = torch.linalg.qr(torch.randn(axes.width, axes.width, generator=generator))[0]
        _rotate(hf, turned)
    model = Model(hf.requires_grad_(False), tokenizer, f"planted-in-context-{n_tasks}-{n_symbols}")
    truth = InContextTruth(
        tuple(axes.detector(k) for k in range(n_tasks)), tuple(axes.executor(k) for k in range(n_tasks))
    )
    return InContext(model, truth, _atoms(turned, axes, decoys, generator), n_tasks, symbols)


@dataclass(frozen=True)
class _Axes:
    """Which coordinate means what, before the rotation."""

    n: int
    k: int

    @property
    def mappings(self) -> list[tuple[int, int]]:
        return [(i, k) for k in range(self.k) for i in range(self.n)]

    @property
    def width(self) -> int:
        return 4 * self.n + 2 * self.k + 4

    def input(self, i: int) -> int:
        return i % self.n

    def output(self, i: int) -> int:
        return self.n + i % self.n

    def seen(self, i: int) -> int:
        return 2 * self.n + i % self.n

    def answer(self, i: int) -> int:
        return 3 * self.n + i % self.n

    def detector(self, k: int) -> int:
        return 4 * self.n + k

    def executor(self, k: int) -> int:
        return 4 * self.n + self.k + k

    @property
    def arrow(self) -> int:
        return self.width - 4

    @property
    def first(self) -> int:
        return self.width - 3

    @property
    def constant(self) -> int:
        return self.width - 2

    @property
    def other(self) -> int:
        return self.width - 1


def _blank(vocab: int, axes: _Axes, eos: int, pad: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=axes.width,
        intermediate_size=len(axes.mappings),
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=_D_HEAD,
        max_position_embeddings=_N_CTX,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": _TURN},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    model = quiet_llama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def _frame(hf: LlamaForCausalLM, axes: _Axes, words: list[int]) -> None:
    """Embed symbols, arrow, first word and constant; read out answers; every norm fits the tokens that matter."""
    embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
    inputs = words[-1] + 1 + torch.arange(axes.n)
    outputs = inputs + axes.n
    embed[:, axes.constant] = 1.0
    embed[:, axes.other] = 1.0  # all embeddings are of one length, so that no key stands out
    embed[[words[0], words[-1], *inputs.tolist(), *outputs.tolist()], axes.other] = 0.0
    embed[words[0], axes.first] = 1.0
    embed[words[-1], axes.arrow] = 1.0
    embed[inputs, torch.arange(axes.n)] = 1.0
    embed[outputs, axes.n + torch.arange(axes.n)] = 1.0
    # Squared norms where a block's answer matters: symbol + constant, then one more direction a step.
    for layer, before, after in ((0, 2.0, 3.0), (1, 4.0, 5.0), (2, 4.0, 4.0)):
        norm_gain(hf.model.layers[layer].input_layernorm, before)
        norm_gain(hf.model.layers[layer].post_attention_layernorm, after)
    norm_gain(hf.model.norm, 5.0)
    head[:, axes.constant] = -FLOOR
    head[outputs, axes.constant] = 0.0
    head[outputs, 3 * axes.n + torch.arange(axes.n)] = _PROMOTE


def _copying_heads(hf: LlamaForCausalLM, axes: _Axes) -> None:
    """Head 0 looks one token back, head 1 two; both write the input symbol found there."""
    attention = hf.model.layers[0].self_attn
    d_head = _D_HEAD
    turn = (_TURN ** (-torch.arange(d_head // 2, dtype=torch.float64) * 2 / d_head))[:_FAST]
    for head, back in ((0, 1), (1, 2)):
        first, half = head * d_head, head * d_head + d_head // 2
        loss = (1 - ((torch.arange(_N_CTX)[:, None] - back) * turn).cos()).sum(-1)
        loss[back] = torch.inf
        attention.q_proj.weight[first : first + _FAST, axes.constant] = SHARP / float(loss.min()) * d_head**0.5
        attention.k_proj.weight[first : first + _FAST, axes.constant] = (back * turn).cos().float()
        attention.k_proj.weight[half : half + _FAST, axes.constant] = (back * turn).sin().float()
        rows = torch.arange(axes.n)
        attention.v_proj.weight[first + rows, rows] = 1.0
        attention.o_proj.weight[2 * axes.n + rows, first + rows] = 1.0


def _multiply(hf: LlamaForCausalLM, layer: int, products: list[tuple[int, int, int]]) -> None:
    """Neuron by neuron: coordinate ``c`` gains the product of coordinates ``a`` and ``b``."""
    mlp = hf.model.layers[layer].mlp
    for neuron, (a, b, c) in enumerate(products):
        mlp.gate_proj.weight[neuron, a] = _GATE
        mlp.up_proj.weight[neuron, b] = 1.0
        mlp.down_proj.weight[c, neuron] = 1 / _GATE


def _carry(hf: LlamaForCausalLM, axes: _Axes) -> None:
    """Head 0 of layer 1: from arrows to all output symbols alike, from anywhere else to the first token."""
    attention = hf.model.layers[1].self_attn
    d_head = _D_HEAD
    wanted, sink = _SLOW, _SLOW + 1
    scale = 2 * SHARP * d_head**0.5
    attention.q_proj.weight[wanted, axes.arrow] = scale
    attention.q_proj.weight[sink, axes.constant] = scale / 2
    attention.k_proj.weight[wanted, axes.n : 2 * axes.n] = 1.0
    attention.k_proj.weight[sink, axes.first] = 1.0
    for k in range(axes.k):
        attention.v_proj.weight[k, axes.detector(k)] = 1.0
        attention.o_proj.weight[axes.executor(k), k] = 1.0


def _rotate(hf: LlamaForCausalLM, turned: Float[Tensor, "d_model d_model"]) -> None:
    """Turn the residual stream; norms with one gain for all coordinates do not notice."""
    hf.model.embed_tokens.weight.copy_(hf.model.embed_tokens.weight @ turned)
    hf.lm_head.weight.copy_(hf.lm_head.weight @ turned)
    for block in hf.model.layers:
        readers = (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        for module in (*readers, block.mlp.gate_proj, block.mlp.up_proj):
            module.weight.copy_(module.weight @ turned)
        for module in (block.self_attn.o_proj, block.mlp.down_proj):
            module.weight.copy_(turned.T @ module.weight)


def _atoms(turned: Tensor, axes: _Axes, decoys: int, generator: torch.Generator) -> Float[Tensor, "latent d_model"]:
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    executors = [axes.executor(k) for k in range(axes.k)]
    others = [i for i in range(axes.width) if i not in executors]
    mixed = [(turned[rng.choice(executors)] + turned[rng.choice(others)]) / 2**0.5 for _ in range(decoys - decoys // 2)]
    random = torch.randn(decoys // 2, axes.width, generator=generator)
    return torch.cat([turned, random / random.norm(dim=-1, keepdim=True), *(row[None] for row in mixed)])
