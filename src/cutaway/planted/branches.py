"""A Llama whose chains hold a driver, an excuse, a stubborn idea, a doubt and hidden steps; every effect is known.

A chain follows a layout, one letter a sentence:

    d  "Plan alpha fits."       the driver: alpha or beta, in two wordings; moves the answer's log-odds by -+driver
    r  "Reason red helps."      the decorative reason: goes with the plan (``reason``), moves nothing
    s  "Idea gold returns."     the stubborn idea, or "Aside while thinking." and the slot is open again, or
                                "Move on instead." and it never returns; moving on lowers the log-odds by ``idea``
    w  "Pause doubtfully now."  calm or doubtful; doubt lowers the log-odds by ``doubt``
    l  "Step4 left4 next."      left or right; right with log-odds ``cue`` under the hint, else evenly; +-step
    f  "Note2 mentions amber."  filler
    a  "The answer is 1."

The stubborn slot is open at odds (a, b, c) for idea, aside, moving on. Whoever takes the idea away (draws until
something else comes) sees it again later with probability ``b / (b + c) * a / (a + c)``, whatever was taken before:
the default odds make this 0.8, so the idea comes back 4 times on average.

The hint stands in the prompt and acts at the steps alone, so its whole effect is mediated by the chain.
`FOREIGN` is a sentence that the model understands as a weaker doubt and never writes: an off-policy insertion.

Truth is for temperature 1 without filters, and follows from `Process` by enumeration; the model is never asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.branch_process import (
    DOUBT,
    FOREIGN,
    HINT,
    PROMPT,
    Process,
    State,
    meaning,
    pushed,
    returns,
    sentences,
    value,
)
from cutaway.planted.build import EOS, FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer


class Exact(NamedTuple):
    """Exact answers about one sentence of one chain; each is P(answer 1) unless said otherwise."""

    kept: float
    """After the sentence."""
    changed: float
    """Given that another sentence came instead; what comes later is free."""
    differ: float
    """Probability that another sentence comes instead."""
    gone: float
    """When the sentence is taken away here and at each later return (drawn again until something else comes)."""
    conditional: float
    """Given that a free continuation never says it."""
    acceptance: float
    """Probability that a free continuation never says it."""
    survival: tuple[float, ...]
    """P(more than k returns), k = 0, 1, ...: the resilience distribution."""

    def resilience(self, cap: int) -> float:
        """Mean number of returns, counted up to ``cap``."""
        return sum(self.survival[:cap])


@dataclass(frozen=True)
class Branches:
    """A planted model of branching chains with its exact answers."""

    model: Model
    process: Process
    prompt_ids: tuple[int, ...]
    hinted_ids: tuple[int, ...]
    """The prompt with the hint; equal to the prompt plus one sentence."""

    def outcome(self, text: str) -> str | None:
        """The digit that the text states as its answer, or None."""
        found = [digit for digit in "01" if f"The answer is {digit}." in text]
        return found[0] if found else None

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text d_embed"]:
        """One axis for each meaning; doubt and its foreign wording lie at cosine 0.8. Unknown texts are zero."""
        axes = self._axes
        out = np.zeros((len(texts), len(axes) + 1))
        for row, text in enumerate(texts):
            if (what := meaning(text)) in axes:
                out[row, axes[what]] = 1.0
            elif what == FOREIGN.strip():
                out[row, axes.get(DOUBT, -1)] = 0.8
                out[row, -1] = 0.6
        return out

    @property
    def truth(self) -> tuple[int, ...]:
        """Sentences (by slot) that can move the answer when taken away for good."""
        process = self.process
        moving = {"d": process.driver, "s": process.idea, "w": process.doubt, "l": process.step}
        return tuple(t for t, letter in enumerate(process.layout) if moving.get(letter, 0.0))

    def sample(self, seed: int, hinted: bool = False) -> tuple[int, ...]:
        """Draw one chain from the process (not the model): new token ids, the end token last."""
        rng, words = np.random.default_rng(seed), []
        state = self._state(self.hinted_ids if hinted else self.prompt_ids)
        while state.current != EOS:
            follow = self.process.next(state)
            words.append(str(rng.choice(list(follow), p=list(follow.values()))))
            state = self.process.advance(state, words[-1])
        return tuple(self._ids(words))

    def token_probs(self, prefix: Sequence[int]) -> Float[np.ndarray, " vocab"]:
        """Exact probability of each token after ``prefix``."""
        probs = np.zeros(self.model.vocab_size)
        for word, p in self.process.next(self._state(prefix)).items():
            probs[self._ids([word])] = p
        return probs

    def p_one(self, prefix: Sequence[int]) -> float:
        """Exact P(answer 1) over all continuations of a prefix that ends with a sentence."""
        return value(self.process, self._state(prefix))[1]

    def boundaries(self, chain: Sequence[int]) -> tuple[int, ...]:
        """Tokens before each sentence of a chain, and at its end (the end token belongs to the last sentence)."""
        stop = self._ids(["."])[0]
        cuts = [i + 1 for i, token in enumerate(chain) if token == stop]
        return (0, *cuts[:-1], len(chain))

    def exact(self, chain: Sequence[int], sentence: int, hinted: bool = False, rounds: int = 60) -> Exact:
        """Exact answers about one sentence of ``chain``."""
        cuts, prompt = self.boundaries(chain), self.hinted_ids if hinted else self.prompt_ids
        before, after = (self._state((*prompt, *chain[: cuts[k]])) for k in (sentence, sentence + 1))
        what = meaning(self.model.decode(chain[cuts[sentence] : cuts[sentence + 1]]))
        others = [(state, p) for text, state, p in sentences(self.process, before) if text != what]
        differ = sum(p for _, p in others)
        never, one = value(self.process, before, what)
        return Exact(
            kept=value(self.process, after)[1],
            changed=sum(p * value(self.process, s)[1] for s, p in others) / differ if differ else math.nan,
            differ=differ,
            gone=value(self.process, before, what, True)[1] if differ else math.nan,
            conditional=one / never if never else math.nan,
            acceptance=never,
            survival=self._survival(before, what, rounds) if differ else (),
        )

    def mediated(self, cut: int) -> float:
        """Exact P(answer 1) without the hint after the first ``cut`` slots were written under it, over all chains."""
        states = {self._state(self.hinted_ids): 1.0}
        for _ in range(cut):
            states = pushed(self.process, states)
        return sum(mass * value(self.process, replace(s, hinted=False))[1] for s, mass in states.items())

    def _survival(self, before: State, what: str, rounds: int) -> tuple[float, ...]:
        at, out = {before: 1.0}, []
        for _ in range(rounds):
            back: dict[State, float] = {}
            for state, mass in at.items():
                for place, p in returns(self.process, state, what).items():
                    back[place] = back.get(place, 0.0) + mass * p
            out.append(sum(back.values(), 0.0))
            at = back
        return tuple(out)

    @cached_property
    def _axes(self) -> dict[str, int]:
        """Every meaning that a chain can have, numbered."""
        texts, seen, todo = [], set(), [self._state(self.prompt_ids), self._state(self.hinted_ids)]
        while todo:
            state = todo.pop()
            if state in seen or state.answer is not None:
                continue
            seen.add(state)
            follow = sentences(self.process, state)
            texts += [text for text, *_ in follow]
            todo += [after for _, after, _ in follow]
        return {text: i for i, text in enumerate(sorted(set(texts)))}

    def _state(self, prefix: Sequence[int]) -> State:
        return self.process.state(self.model.tokenizer.convert_ids_to_tokens(list(prefix)))

    def _ids(self, words: Sequence[str]) -> list[int]:
        return [int(self.model.tokenizer.convert_tokens_to_ids(word)) for word in words]


def branches(
    layout: str = "drswlla",
    *,
    driver: float = 5.0,
    reason: tuple[float, float] = (0.02, 0.9),
    stubborn: tuple[float, float, float] = (0.85, 0.1237, 0.0263),
    idea: float = 10.0,
    doubt: float = 0.0,
    p_doubt: float = 0.15,
    foreign: float = 0.0,
    cue: float = 0.0,
    step: float = 0.0,
    base: float = 0.0,
    n_ctx: int = 2048,
) -> Branches:
    """Build a planted model of branching chains. Weights follow from the arguments; nothing is random.

    layout: letters as in the module's text, ``a`` last and once; at most one each of d, r, s, w.
    driver, idea, doubt, foreign, step, base: log-odds of the answer 1, see the module's text; 0 makes a null.
    reason: probability of "red" after plan alpha and after plan beta.
    stubborn: odds of idea, aside and moving on at the open slot.
    cue: log-odds that the hint adds to each step to the right; 0 makes a hint without effect.

    >>> planted = branches("da")
    >>> planted.model.decode(planted.sample(0))
    ' Plan beta fits. The answer is 1.<eos>'
    """
    _refuse(layout, reason, stubborn, p_doubt)
    process = Process(layout, driver, reason, stubborn, idea, doubt, p_doubt, foreign, cue, step, base)
    tokenizer = word_tokenizer(process.words)
    tables = _tables(process)
    ids = [tokenizer.get_vocab()[word] for word in (*process.words, EOS)]
    used = len(ids) + 1 + sum(len(table.columns) for table in tables)
    d_head = max(4, 2 * math.ceil(max(len(table.columns) for table in tables) / 2))
    hf = blank_llama(
        tokenizer,
        d_model=len(tables) * math.ceil(used / len(tables)),
        n_layers=1,
        n_heads=len(tables),
        d_head=d_head,
        n_ctx=n_ctx,
    )
    _write(hf, process, tables, ids, d_head)
    model = Model(hf, tokenizer, f"planted-branches-{layout}")
    prompt, hinted = ("".join(text) for text in (PROMPT, PROMPT + HINT))
    return Branches(model, process, tuple(model.encode(prompt)), tuple(model.encode(hinted)))


class _Table(NamedTuple):
    """One head: the rank and column of each word it attends to, and the logits that each column adds."""

    marks: dict[str, tuple[int, int]]
    columns: list[dict[str, float]]


def _write(hf: LlamaForCausalLM, process: Process, tables: Sequence[_Table], ids: Sequence[int], d_head: int) -> None:
    """Set the weights: one axis a word, one constant, then the columns of each head; the output reads them all."""
    words = (*process.words, EOS)
    constant, slow, layer = len(words), d_head // 2 - 1, hf.model.layers[0]
    with torch.no_grad():
        embed = hf.model.embed_tokens.weight
        embed[:, constant] = 1.0
        embed[ids, range(len(words))] = 1.0
        hf.lm_head.weight[:, constant] = -FLOOR
        hf.lm_head.weight[ids, constant] = 0.0
        by_word = _by_word(process, words)
        hf.lm_head.weight[ids, :constant] = torch.tensor(by_word.T, dtype=torch.float32)
        start = constant + 1
        for head, table in enumerate(tables):
            first, width = head * d_head, len(table.columns)
            layer.self_attn.q_proj.weight[first + slow, constant] = SHARP * d_head**0.5
            for word, (rank, column) in table.marks.items():
                layer.self_attn.k_proj.weight[first + slow, words.index(word)] = rank
                layer.self_attn.v_proj.weight[first + column, words.index(word)] = 1.0
            layer.self_attn.o_proj.weight[start : start + width, first : first + width] = torch.eye(width)
            for column, logits in enumerate(table.columns):
                for word, logit in logits.items():
                    hf.lm_head.weight[ids[words.index(word)], start + column] += logit
            start += width
        norm_gain(layer.input_layernorm, 2.0)
        norm_gain(layer.post_attention_layernorm, 2.0 + len(tables))
        norm_gain(hf.model.norm, 2.0 + len(tables))


def _tables(process: Process) -> list[_Table]:
    """Heads for progress, plan, idea, mood, voice, cue, and one for each step; column 0 is the prompt's first word."""
    none = {PROMPT[0]: (1, 0)}
    last = len(process.layout)
    openers = {word for slot in range(last) for word in process.openers(slot)} | {EOS}

    def closed(done: int) -> dict[str, float]:
        allowed = process.openers(done + 1) if done + 1 < last else {EOS: 1.0}
        return {word: math.log(allowed[word]) if allowed.get(word) else -FLOOR for word in openers}

    progress = _Table(
        none | {word: (slot + 2, slot + 1) for word, slot in process.begins.items()},
        [closed(done) for done in range(-1, last)],
    )
    steps = [slot for slot, letter in enumerate(process.layout) if letter == "l"]

    def colours(p: float) -> dict[str, float]:
        return {" red": _log(p), " blue": _log(1 - p)} if "r" in process.layout else {}

    found = [
        progress,
        _choice(
            (" alpha", " beta"),
            colours(0.5),
            *({" 1": sign * process.driver, **colours(p)} for sign, p in zip((-1, 1), process.reason, strict=True)),
        ),
        _choice((" Idea", " Move"), {}, {}, {" 1": -process.idea}),
        _choice((" calmly", " doubtfully"), {}, {}, {" 1": -process.doubt}),
        _choice((" doubts",), {}, {" 1": -process.foreign}),
        _choice((" likes",), {}, {f" right{slot}": process.cue for slot in steps}),
        *(
            _choice((f" left{slot}", f" right{slot}"), {}, {" 1": -process.step}, {" 1": process.step})
            for slot in steps
        ),
    ]
    known = set(process.words)
    return [table for table in found if len({word for word in table.marks if word in known}) == len(table.marks)]


def _choice(marks: Sequence[str], *columns: dict[str, float]) -> _Table:
    ranks = {PROMPT[0]: (1, 0)} | {word: (2, column) for column, word in enumerate(marks, 1)}
    return _Table(ranks, list(columns))


def _by_word(process: Process, words: tuple[str, ...]) -> Float[np.ndarray, "word next"]:
    """Logits by current word; what the heads decide is left even here."""
    table = np.full((len(words), len(words)), -FLOOR)
    for word in words:
        if word == ".":
            follow = dict.fromkeys(
                [w for slot in range(len(process.layout)) for w in process.openers(slot)] + [EOS], 1.0
            )
        else:
            follow = process.next(State(word))
        heads = word in (" Reason", " is") or word.startswith(" Step")
        for after, p in follow.items():
            table[words.index(word), words.index(after)] = 0.0 if word == "." or heads else _log(p)
        if word == " is":
            table[words.index(word), words.index(" 1")] = process.base
    return table


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -FLOOR


def _refuse(layout: str, reason: tuple[float, float], stubborn: tuple[float, float, float], p_doubt: float) -> None:
    unknown = sorted(set(layout) - set("drswlfa"))
    if unknown:
        raise UsageError(f"layout={layout!r}: unknown letter {unknown[0]!r}; use d, r, s, w, l, f, a")
    if layout.count("a") != 1 or not layout.endswith("a") or any(layout.count(x) > 1 for x in "drsw"):
        raise UsageError(f"layout={layout!r}: needs one a, at the end, and at most one each of d, r, s, w")
    if not all(0 <= p <= 1 for p in (*reason, p_doubt)):
        raise UsageError(f"reason={reason}, p_doubt={p_doubt}: probabilities lie in [0, 1]")
    if min(stubborn) <= 0 or abs(sum(stubborn) - 1) > 1e-9:
        raise UsageError(f"stubborn={stubborn}: three odds above 0 that sum to 1")
