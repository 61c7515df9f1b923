"""What every sampling engine must do, as plain functions: one suite for local and remote engines alike.

``check_engine(Subject(engine, text, vocab_size, decode))`` runs all of `CHECKS`; a test may also parametrise
over `CHECKS` to see each by name.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import pytest

from cutaway.errors import UsageError
from cutaway.sampling.types import Engine, Request, Rollout, Settings


@dataclass(frozen=True)
class Subject:
    """An engine and what is known of its model from elsewhere."""

    engine: Engine
    text: tuple[int, ...]
    """At least 6 token ids; the checks continue it and its beginnings."""
    vocab_size: int
    decode: Callable[[Sequence[int]], str]
    eos_ids: Collection[int] = ()
    teacher: Callable[[Sequence[int], Sequence[int]], Sequence[float]] | None = None
    """Log-probs (nats, temperature 1) of a continuation after a prefix, from one plain forward pass."""
    tolerance: float = 1e-3
    """Largest difference in nats between the engine's log-probs and the teacher's."""
    max_tokens: int = 12


Rows = dict[tuple[int, int], Rollout]


def draw(subject: Subject, *requests: Request) -> Rows:
    """All rollouts by (request index, seed); each must come exactly once."""
    pairs = list(subject.engine.stream(requests))
    rows = {(index, rollout.seed): rollout for index, rollout in pairs}
    expected = sorted((i, seed) for i, request in enumerate(requests) for seed in request.seeds)
    assert sorted((index, rollout.seed) for index, rollout in pairs) == expected
    return rows


def request(subject: Subject, seeds: Sequence[int], length: int | None = None, **settings: object) -> Request:
    chosen = {"max_tokens": subject.max_tokens, **settings}
    return Request(subject.text[:length], tuple(seeds), Settings(**chosen))  # type: ignore[arg-type]


def check_each_seed_once(subject: Subject) -> None:
    """Every request gets one rollout a seed, from prefixes of different lengths; no request gets none."""
    rows = draw(
        subject,
        request(subject, range(5)),
        request(subject, (3,), length=2),
        request(subject, (), length=3),
        request(subject, (7, 1), length=4),
    )
    assert draw(subject) == {}
    for row in rows.values():
        assert all(0 <= token < subject.vocab_size for token in row.ids)


def check_lengths_and_finish(subject: Subject) -> None:
    """No row is longer than max_tokens; 'length' means exactly that long, 'stop' an end token at the end."""
    for limit in (1, 2, subject.max_tokens):
        for row in draw(subject, request(subject, range(4), max_tokens=limit, temperature=1.0)).values():
            assert 1 <= len(row.ids) <= limit
            if row.finish == "length":
                assert len(row.ids) == limit
            elif subject.eos_ids:
                assert row.ids[-1] in subject.eos_ids
            if subject.eos_ids:
                assert not set(row.ids[:-1]) & set(subject.eos_ids)


def check_seeds(subject: Subject) -> None:
    """The same seed draws the same row, whatever stands beside it; different seeds draw different rows."""
    ask = request(subject, range(6), temperature=1.0, top_p=1.0)
    rows = draw(subject, ask)
    beside = draw(
        subject,
        request(subject, (2, 100), length=3),
        replace(ask, seeds=tuple(reversed(ask.seeds))),
        request(subject, (2, 4), temperature=0.7),
    )
    assert {seed: row.ids for (_, seed), row in rows.items()} == {
        seed: row.ids for (index, seed), row in beside.items() if index == 1
    }
    assert len({row.ids for row in rows.values()}) > 1


def check_greedy(subject: Subject) -> None:
    """Temperature 0 gives one row for all seeds, alone and among others."""
    ask = request(subject, (0, 5, 9), temperature=0.0)
    alone = draw(subject, ask)
    among = draw(subject, request(subject, range(4), length=4), ask, request(subject, (1,), temperature=0.0))
    ids = {row.ids for row in alone.values()} | {row.ids for (i, _), row in among.items() if i > 0}
    assert len(ids) == 1


def check_top_k_of_one_is_greedy(subject: Subject) -> None:
    """top_k=1 leaves only the most likely token, and so does a tiny top_p."""
    greedy = draw(subject, request(subject, (0,), temperature=0.0))[0, 0].ids
    assert draw(subject, request(subject, (4,), temperature=1.0, top_k=1))[0, 4].ids == greedy
    assert draw(subject, request(subject, (4,), temperature=1.0, top_p=1e-6))[0, 4].ids == greedy


def check_stop_string(subject: Subject) -> None:
    """A row ends with the token that completes the stop string, and is otherwise the row without one."""
    whole = draw(subject, request(subject, range(8), temperature=1.0))
    long = [row for row in whole.values() if len(row.ids) >= 4]
    letters = [
        (row, letter)
        for row in long
        for letter in subject.decode(row.ids[2:-1])
        if letter.isalnum() and letter.isascii() and letter not in subject.decode(row.ids[:2])
    ]
    assert letters, "no row of this model has a letter to stop at; choose another text"
    row, mark = letters[0]
    cut = next(n for n in itertools.count(1) if mark in subject.decode(row.ids[:n]))
    stopped = draw(subject, request(subject, (row.seed,), temperature=1.0, stop=("\x00none", mark)))
    found = stopped[0, row.seed]
    assert found.finish == "stop"
    assert found.ids == row.ids[:cut]
    assert len(found.logprobs) == cut


def check_logprobs(subject: Subject) -> None:
    """One finite log-prob <= 0 a token: the teacher's, whatever the temperature and the filters."""
    for settings in ({"temperature": 1.0, "top_p": 1.0}, {"temperature": 0.6, "top_p": 0.9}, {"top_k": 3}):
        ask = request(subject, range(3), **settings)
        for row in draw(subject, ask).values():
            assert len(row.logprobs) == len(row.ids)
            assert all(math.isfinite(x) and x <= 0 for x in row.logprobs)
            if subject.teacher is not None:
                taught = subject.teacher(ask.prefix, row.ids)
                assert row.logprobs == pytest.approx(list(taught), abs=subject.tolerance)


def check_ban_first(subject: Subject) -> None:
    """No row begins with the banned token, and later tokens are free."""
    free = draw(subject, request(subject, range(12), temperature=1.0, top_p=1.0, max_tokens=2))
    firsts = [row.ids[0] for row in free.values()]
    banned = max(set(firsts), key=firsts.count)
    ask = replace(request(subject, range(12), temperature=1.0, top_p=1.0, max_tokens=2), ban_first=banned)
    rows = draw(subject, ask)
    assert banned not in {row.ids[0] for row in rows.values()}
    assert draw(subject, ask) == rows


def check_cost(subject: Subject) -> None:
    """Decoded tokens are counted exactly; every prefix token is either prefilled or reused."""
    ask = [request(subject, range(5)), request(subject, (1, 2), length=3)]
    before = subject.engine.cost
    rows = draw(subject, *ask)
    spent = subject.engine.cost - before
    assert spent.decoded == sum(len(row.ids) for row in rows.values())
    assert spent.prefilled + spent.reused >= sum(len(r.prefix) * r.n for r in ask)


def check_token_probs(subject: Subject) -> None:
    """Where they are known, the probabilities of a text are the teacher's; where not, None."""
    continuation = draw(subject, request(subject, (0,), temperature=1.0))[0, 0].ids
    unfiltered = Settings(temperature=1.0, top_p=1.0)
    probs = subject.engine.token_probs(subject.text, continuation, unfiltered)
    if probs is not None:
        assert len(probs) == len(continuation)
        assert all(0 <= p <= 1 + 1e-9 for p in probs)
        if subject.teacher is not None:
            taught = [math.exp(x) for x in subject.teacher(subject.text, continuation)]
            assert probs == pytest.approx(taught, abs=subject.tolerance)


def check_refusals(subject: Subject) -> None:
    """An empty prefix and token ids that the model does not have are usage errors."""
    good = request(subject, (0,))
    for prefix in ((), (*subject.text, subject.vocab_size + 5), (-1, *subject.text)):
        with pytest.raises(UsageError, match=r"empty|vocabulary"):
            list(subject.engine.stream([replace(good, prefix=prefix)]))


def check_identity(subject: Subject) -> None:
    """The engine says what it samples, and keeps the protocol."""
    assert isinstance(subject.engine, Engine)
    assert subject.engine.identity
    assert subject.engine.identity == subject.engine.identity.strip()


CHECKS = (
    check_identity,
    check_each_seed_once,
    check_lengths_and_finish,
    check_seeds,
    check_greedy,
    check_top_k_of_one_is_greedy,
    check_stop_string,
    check_logprobs,
    check_ban_first,
    check_cost,
    check_token_probs,
    check_refusals,
)


def check_engine(subject: Subject) -> None:
    """Run the whole suite over one engine."""
    for check in CHECKS:
        check(subject)
