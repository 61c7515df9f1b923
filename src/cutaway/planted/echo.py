"""Dialogues whose carry-over is known: simulators, and a Llama that answers in the style of its last answer.

The model reads ``Chat``, then a question and a style word in turn. With probability q it copies the style of the
answer just before the question; otherwise it draws a style at the question's own rate. So the causal effect of the
last answer is exactly q (at equal ease), that of any earlier answer is 0 once the last one is held fixed, and with
q = 0 nothing carries over.

1. The residual stream holds a constant, the current word (one-hot), and what one head read.
2. The head attends one token back (constant query and key in fast rotary pairs), where before a question the last
   answer stands. It writes +1 or -1 along one axis, the style direction, or 1 along another axis where no style
   stands there. Each part has constant norm, so the norm layers are the identity.
3. The log-odds of the two style words are linear in that reading and in the question's ease.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer

START = "Chat"
STYLES = (" plain", " bright")
"""Absent (-) and present (+)."""
SITE = "resid_post.0"
_D_HEAD, _FAST, _THETA = 64, 4, 1e20
_CHAT = START + "{% for message in messages %}{{ ' ' + message['content'] | trim }}{% endfor %}"


@dataclass(frozen=True)
class EchoTruth:
    """What methods should find."""

    q: float
    """Probability of copying: the effect of the last answer at equal ease, and lambda_2 of the styles."""
    risk_difference: float
    """P(+ | last answer +) - P(+ | last answer -), averaged over questions."""
    distant: float
    """The same for an answer further back, the last one held fixed."""
    direction: Float[Tensor, " d_model"]
    """The style direction at `SITE`: the reading moves from -1 to +1 along it."""
    angle: float
    """Degrees between the mean states of + and - answers at their first token, at `SITE`."""


@dataclass(frozen=True)
class Echo:
    """A planted model of answer style."""

    model: Model
    questions: tuple[str, ...]
    """One word each, without the leading space."""
    ease: tuple[float, ...]
    """Log-odds added to the style + by each question."""
    rate: float
    truth: EchoTruth

    def p_plus(self, question: int, previous: int | None) -> float:
        """Exact probability of the style + at a question after style ``previous`` (1, 0; None: no history)."""
        odds = _log_odds(self.truth.q, self.rate)[{None: 2, 0: 1, 1: 0}[previous]]
        return 1 / (1 + math.exp(-odds - self.ease[question]))


def echo(q: float = 0.6, *, rate: float = 0.5, n_questions: int = 24, spread: float = 0.0) -> Echo:
    """Build the model. ``q = 0`` is the null: no carry-over.

    q: probability of copying the last style, below 1.
    rate: probability of + at a question of middling ease when nothing is copied.
    n_questions: 2 to 90.
    spread: standard deviation of the questions' ease, in log-odds.
    """
    if not 0 <= q < 1 or not 0 < rate < 1:
        raise UsageError(f"q={q}, rate={rate}: q in [0, 1), rate in (0, 1)")
    if not 2 <= n_questions <= 90 or spread < 0:
        raise UsageError(f"n_questions={n_questions}, spread={spread}: 2 to 90 questions, spread from 0 on")
    questions = tuple(f"q{i:02d}" for i in range(10, 10 + n_questions))
    steps = np.linspace(-1, 1, n_questions)
    ease = tuple(float(e) for e in spread * steps / steps.std())
    tokenizer = word_tokenizer((START, *STYLES, *(f" {question}" for question in questions)))
    tokenizer.chat_template = _CHAT
    d_model = n_questions + 6
    hf = blank_llama(tokenizer, d_model=d_model, n_layers=1, n_heads=1, d_head=_D_HEAD, n_ctx=512, rope_theta=_THETA)
    with torch.no_grad():
        _write(hf, ease, _log_odds(q, rate))
    direction = torch.zeros(d_model)
    direction[_read(n_questions)] = 1.0
    model = Model(hf, tokenizer, f"planted-echo-{q:g}")
    plus, minus, _ = _log_odds(q, rate)
    gaps = [1 / (1 + math.exp(-plus - e)) - 1 / (1 + math.exp(-minus - e)) for e in ease]
    # Two states that share two of three orthogonal unit parts.
    truth = EchoTruth(q, float(np.mean(gaps)), 0.0, direction, math.degrees(math.acos(2 / 3)))
    return Echo(model, questions, ease, rate, truth)


def simulate_chain(
    stay_minus: float, stay_plus: float, dialogues: int, turns: int, *, seed: int = 0
) -> Int[np.ndarray, "dialogue turn"]:
    """Outcomes of a two-state chain from its stationary start; Tr is ``stay_minus + stay_plus``."""
    if not 0 <= stay_minus < 1 or not 0 <= stay_plus < 1:
        raise UsageError(f"stay_minus={stay_minus}, stay_plus={stay_plus}: in [0, 1)")
    uniform = np.random.default_rng(seed).random((dialogues, turns))
    y = np.empty((dialogues, turns), dtype=int)
    y[:, 0] = uniform[:, 0] < (1 - stay_minus) / (2 - stay_minus - stay_plus)
    for t in range(1, turns):
        y[:, t] = uniform[:, t] < np.where(y[:, t - 1] == 1, stay_plus, 1 - stay_minus)
    return y


@dataclass(frozen=True)
class SimulatedItems:
    """Dialogues over items of unlike difficulty."""

    outcomes: Int[np.ndarray, "dialogue turn"]
    odds: Float[np.ndarray, "dialogue turn"]
    """Log-odds of + at each turn without history."""
    history_free: Int[np.ndarray, "dialogue turn"]
    """One draw of each item without history."""
    after_plus: Int[np.ndarray, "dialogue turn"]
    """One draw of each item after a forced + history."""
    after_minus: Int[np.ndarray, "dialogue turn"]
    risk_difference: float
    """True mean difference between the two."""


def simulate_items(
    dialogues: int,
    turns: int,
    *,
    sd: float = 1.5,
    correlation: float = 0.0,
    base_sd: float = 0.0,
    carry: float = 0.0,
    seed: int = 0,
) -> SimulatedItems:
    """Items whose log-odds have ``sd`` and correlate between neighbours; dialogues' bases differ by ``base_sd``.

    ``carry`` is added to the log-odds after a + turn and taken off after a - turn; 0 is no carry-over, whatever the
    transitions look like.
    """
    rng = np.random.default_rng(seed)
    odds = np.empty((dialogues, turns))
    odds[:, 0] = rng.normal(size=dialogues)
    for t in range(1, turns):
        odds[:, t] = correlation * odds[:, t - 1] + math.sqrt(1 - correlation**2) * rng.normal(size=dialogues)
    odds = sd * odds + base_sd * rng.normal(size=(dialogues, 1))

    def drawn(shift: Float[np.ndarray, "..."] | float, at: slice | int = slice(None)) -> np.ndarray:
        p = 1 / (1 + np.exp(-odds[:, at] - shift))
        return (rng.random(p.shape) < p).astype(int)

    y = np.empty((dialogues, turns), dtype=int)
    y[:, 0] = drawn(0.0, 0)
    for t in range(1, turns):
        y[:, t] = drawn(carry * (2.0 * y[:, t - 1] - 1), t)
    gap = float((1 / (1 + np.exp(-odds - carry)) - 1 / (1 + np.exp(-odds + carry))).mean())
    return SimulatedItems(y, odds, drawn(0.0), drawn(carry), drawn(-carry), gap)


@dataclass(frozen=True)
class SimulatedStates:
    """Hidden states of a sticky behaviour, with a known angle between its class means."""

    states: Float[np.ndarray, "answer d_model"]
    labels: Int[np.ndarray, " answer"]
    dialogue: Int[np.ndarray, " answer"]
    turn: Int[np.ndarray, " answer"]
    angle: float


def simulate_states(
    angle: float, dialogues: int, turns: int, *, d_model: int = 64, noise: float = 0.5, seed: int = 0
) -> SimulatedStates:
    """States around two unit means ``angle`` degrees apart, with noise of norm ``noise``; 0 degrees is the null."""
    rng = np.random.default_rng(seed)
    y = simulate_chain(0.6, 0.6, dialogues, turns, seed=seed)
    first, second = np.linalg.qr(rng.normal(size=(d_model, 2)))[0].T
    plus = math.cos(math.radians(angle)) * first + math.sin(math.radians(angle)) * second
    labels = y.ravel()
    states = np.where(labels[:, None] == 1, plus, first) + noise / math.sqrt(d_model) * rng.normal(
        size=(len(labels), d_model)
    )
    dialogue, turn = (index.ravel() for index in np.indices(y.shape))
    return SimulatedStates(states, labels, dialogue, turn, angle)


def _log_odds(q: float, rate: float) -> tuple[float, float, float]:
    """Log-odds of + after +, after - and without history."""
    shares = q + (1 - q) * rate, (1 - q) * rate, rate
    plus, minus, free = (math.log(p / (1 - p)) for p in shares)
    return plus, minus, free


def _read(n_questions: int) -> int:
    """Column of the style reading; the next one says that no style was read."""
    return n_questions + 4


def _write(hf: LlamaForCausalLM, ease: tuple[float, ...], odds: tuple[float, float, float]) -> None:
    """Columns: constant, start, the two styles, the questions, style reading, nothing read."""
    n = len(ease)
    read, nothing = _read(n), _read(n) + 1
    start, minus, plus, first = 3, 4, 5, 6  # token ids: three specials, then the words in order
    embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
    embed[:, 0] = 1.0
    embed[torch.arange(start, first + n), torch.arange(1, n + 4)] = 1.0
    layer = hf.model.layers[0]
    norm_gain(layer.input_layernorm, 2.0)
    norm_gain(layer.post_attention_layernorm, 3.0)
    norm_gain(hf.model.norm, 3.0)
    _look_back(hf)
    attention = layer.self_attn
    attention.v_proj.weight[0, 2], attention.v_proj.weight[0, 3] = -1.0, 1.0
    attention.v_proj.weight[1, 0] = 1.0
    attention.v_proj.weight[1, 2:4] = -1.0
    attention.o_proj.weight[read, 0] = 1.0
    attention.o_proj.weight[nothing, 1] = 1.0
    after_plus, after_minus, free = odds
    middle = (after_plus + after_minus) / 2
    head[:, 0] = -FLOOR
    head[minus, 4 : 4 + n] = FLOOR
    head[plus, 4 : 4 + n] = FLOOR + middle + torch.tensor(ease)
    head[plus, read] = (after_plus - after_minus) / 2
    head[plus, nothing] = free - middle
    head[hf.config.eos_token_id, 1:4] = FLOOR


def _look_back(hf: LlamaForCausalLM) -> None:
    """A score that depends on distance alone and is largest one token back."""
    attention = hf.model.layers[0].self_attn
    turn = _THETA ** (-torch.arange(_FAST, dtype=torch.float64) * 2 / _D_HEAD)
    apart = (torch.arange(hf.config.max_position_embeddings)[:, None] - 1) * turn
    loss = (1 - apart.cos()).sum(-1)
    loss[1] = torch.inf
    attention.q_proj.weight[:_FAST, 0] = SHARP / float(loss.min()) * _D_HEAD**0.5
    attention.k_proj.weight[:_FAST, 0] = turn.cos().float()
    half = _D_HEAD // 2
    attention.k_proj.weight[half : half + _FAST, 0] = turn.sin().float()
