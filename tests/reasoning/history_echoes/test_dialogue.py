"""Dialogues: every instruction reaches the model, rows are as good as alone, and an end says why."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from endless import ANSWERS, dialogues

from cutaway.errors import UsageError
from cutaway.model import Add, Model
from cutaway.model.edits import Patch
from cutaway.planted import reasoner
from cutaway.planted.echo import SITE, Echo, echo
from cutaway.reasoning.history_echoes import (
    Asked,
    Chat,
    capture_answers,
    chat_tokens,
    measure_geometry,
    measure_stickiness,
    plan_dialogues,
    run_dialogues,
    select_items,
)
from cutaway.reasoning.history_echoes.calibration import STYLE, style_items
from cutaway.reasoning.history_echoes.engine import DialogueEngine
from cutaway.reasoning.history_echoes.rows import RowCache
from cutaway.sampling import BranchTree, Cost, LocalEngine, Request, Rollout, Settings

PROGRAM = Path(__file__).parent / "endless.py"

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def templated(planted: Echo) -> Callable[[str], Model]:
    """The planted model under another chat template."""
    before = planted.model.tokenizer.chat_template

    def use(template: str | None) -> Model:
        planted.model.tokenizer.chat_template = template
        return planted.model

    yield use  # type: ignore[misc]
    planted.model.tokenizer.chat_template = before


HISTORY = (("Name a city.", "Rome."), ("Name a river.", "The Po."))


def test_every_message_is_in_the_ids(templated: Callable[[str], Model]) -> None:
    model = templated(CHATML)
    text = model.decode(chat_tokens(model, HISTORY, "Name a hill.", "Be brief."))
    assert text == (
        "<|system|>Be brief.<|end|><|user|>Name a city.<|end|><|assistant|>Rome.<|end|><|user|>Name a river.<|end|>"
        "<|assistant|>The Po.<|end|><|user|>Name a hill.<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}"), "system text 'Be br"),
        (CHATML.replace("messages %}", "messages[:1] %}"), "user text 'Name a city.'"),
        (CHATML.replace("messages %}", "messages[::-1] %}"), "drops the"),
    ],
)
def test_a_template_that_drops_a_message_is_named(templated: Callable[[str], Model], template: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        chat_tokens(templated(template), HISTORY, "Name a hill.", "Be brief.")


def test_templates_that_refuse_or_are_missing_are_errors(templated: Callable[[str | None], Model]) -> None:
    with pytest.raises(UsageError, match="refuses this dialogue: no system role"):
        chat_tokens(templated("{{ raise_exception('no system role') }}"), (), "Hello?", "Be brief.")
    with pytest.raises(UsageError, match="no chat template"):
        chat_tokens(templated(None), (), "Hello?")


def requests_of(planted: Echo, settings: Settings) -> list[Request]:
    """Histories that extend each other, that branch, and that share nothing."""
    styles = ("plain", "bright")
    turns = [(q, styles[i % 2]) for i, q in enumerate(planted.questions)]
    histories = [tuple(turns[:k]) for k in (0, 3, 1, 7, 2)] + [tuple(turns[5:9]), (*turns[:3], ("q20", "bright"))]
    return [
        Request(chat_tokens(planted.model, history, "q15"), (i, i + 50), settings)
        for i, history in enumerate(histories)
    ]


@pytest.mark.parametrize("slots", [1, 3, 32])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_side_by_side_draw_what_one_text_alone_draws(planted: Echo, slots: int, temperature: float) -> None:
    requests = requests_of(planted, Settings(temperature, 1.0, 0, 3))
    alone = {(i, r.seed): r for i, r in LocalEngine(planted.model).stream(requests)}
    engine = DialogueEngine(planted.model, slots)
    for _ in range(2):  # the second time everything comes from what rows hold
        found = {(i, r.seed): r for i, r in engine.stream(requests)}
        assert {key: r.ids for key, r in found.items()} == {key: r.ids for key, r in alone.items()}
        for key, rollout in found.items():
            assert rollout.logprobs == pytest.approx(alone[key].logprobs, abs=1e-4)
            assert rollout.finish == alone[key].finish


def test_rows_agree_on_a_model_with_long_answers() -> None:
    planted = reasoner("pfsa")
    settings = Settings(1.0, 1.0, 0, 40)
    cut = planted.sample_trace(1)
    requests = [Request((*planted.prompt_ids, *cut[:k]), (k, k + 9), settings) for k in (0, 5, 2, 9, 5)]
    alone = {(i, r.seed): r.ids for i, r in LocalEngine(planted.model).stream(requests)}
    engine = DialogueEngine(planted.model, 4)
    assert {(i, r.seed): r.ids for i, r in engine.stream(requests)} == alone


def test_a_dialogue_reads_each_token_once(planted: Echo) -> None:
    engine = DialogueEngine(planted.model, 2)
    settings, turns = Settings(0.0, 1.0, 0, 1), []
    for question in planted.questions[:8]:
        ids = chat_tokens(planted.model, turns, question)
        _, rollout = next(iter(engine.stream([Request(ids, (0,), settings)])))
        turns.append((question, planted.model.decode(rollout.ids).strip()))
    # Start word once, then a question and the answer before it a turn (a drawn token is read with the next turn).
    assert engine.cost.prefilled == len(ids) == 1 + 2 * 8 - 1
    assert engine.cost.decoded == 8


def in_order(stream: Iterable[tuple[int, Rollout]]) -> list[tuple[int, ...]]:
    return [ids for _, _, ids in sorted((i, rollout.seed, rollout.ids) for i, rollout in stream)]


def test_edits_reach_every_row_and_leave_no_trace(planted: Echo) -> None:
    engine, local = DialogueEngine(planted.model, 4), LocalEngine(planted.model)
    requests = requests_of(planted, Settings(0.0, 1.0, 0, 1))
    bright = Add(SITE, 4 * planted.truth.direction)
    plain = in_order(engine.stream(requests))
    steered = in_order(engine.stream(requests, [bright]))
    assert steered == in_order(local.stream(requests, [bright]))
    assert len(set(steered)) == 1
    assert in_order(engine.stream(requests)) == plain != steered


def test_what_rows_cannot_do_is_refused(planted: Echo) -> None:
    engine, greedy = DialogueEngine(planted.model), Settings(0.0, 1.0, 0, 1)
    vector = planted.truth.direction
    for edit in (Add(SITE, vector, positions=1), Patch(SITE, vector[None, None])):
        with pytest.raises(UsageError, match="share no positions"):
            list(engine.stream([Request((3,), (0,), greedy)], [edit]))
    for request, named in (
        (Request((), (0,), greedy), "prefix is empty"),
        (Request((3,), (0,), greedy, ban_first=4), "only LocalEngine"),
        (Request((10**6,), (0,), greedy), "outside the vocabulary"),
        (Request((3,) * 512, (0,), greedy), "exceed the context"),
    ):
        with pytest.raises(UsageError, match=named):
            list(engine.stream([request]))
    with pytest.raises(UsageError, match="slots=0"):
        DialogueEngine(planted.model, 0)


def test_natural_dialogues_are_as_sticky_as_planted(planted: Echo, chat_of: Callable[..., Chat]) -> None:
    even = echo(0.6)
    chat = chat_of(even, seed=1)
    plan = plan_dialogues(style_items(even), 60, 20, "shuffled", seed=0)
    found = run_dialogues(chat, plan, STYLE, width=64)
    assert found.outcomes.shape == (60, 19)
    assert (found.outcomes >= 0).all()
    trace = measure_stickiness(found.outcomes).trace
    assert trace.low is not None
    assert trace.high is not None
    assert trace.low <= 1 + even.truth.q <= trace.high
    seen = capture_answers(even.model, found, [SITE])
    assert len(seen.labels) == found.outcomes.size
    geometry = measure_geometry(seen.states[SITE], seen.labels, seen.dialogue, seen.turn, permutations=50)
    assert geometry.theta.value == pytest.approx(even.truth.angle, abs=0.01)
    assert geometry.rotations["-+"] == pytest.approx(even.truth.angle, abs=0.01)
    assert geometry.p is not None
    assert geometry.p < 0.05


def test_a_dialogue_that_ends_early_says_why(planted: Echo, chat_of: Callable[..., Chat]) -> None:
    items = style_items(planted)[:20]
    plan = plan_dialogues(items, 2, 20, "shuffled")
    chat = chat_of(planted, max_tokens=490)  # the context is 512 tokens
    found = run_dialogues(chat, plan, STYLE)
    assert all("context overflow" in dialogue.ended for dialogue in found.dialogues)
    assert (found.outcomes[:, -1] == -1).all()
    assert (found.outcomes[:, 0] >= 0).all()

    class Silent(DialogueEngine):
        def stream(self, requests, edits=()):  # type: ignore[no-untyped-def]
            for i, rollout in super().stream(requests, edits):
                yield i, replace(rollout, ids=tuple(self.model.eos_ids))

    silent = Chat(planted.model, Silent(planted.model), Settings(0.0, 1.0, 0, 2))
    quiet = run_dialogues(silent, plan, STYLE)
    assert all(dialogue.ended == "turn 2: empty answer" for dialogue in quiet.dialogues)
    assert measure_stickiness(quiet.outcomes).trace.undefined
    assert capture_answers(planted.model, quiet, [SITE]).labels.size == 0


def test_a_template_that_rewrites_history_cannot_be_captured(
    templated: Callable[[str], Model], chat_of: Callable[..., Chat], planted: Echo
) -> None:
    plan = plan_dialogues(style_items(planted), 2, 4, "shuffled")
    chat = chat_of(planted)
    templated("Chat{{ messages | length }}{% for m in messages %}{{ ' ' + m['content'] | trim }}{% endfor %}")
    with pytest.raises(UsageError, match="rewrites earlier turns"):
        capture_answers(planted.model, run_dialogues(chat, plan, STYLE), [SITE])


def test_answers_to_one_question_are_drawn_independently(planted: Echo, chat_of: Callable[..., Chat]) -> None:
    replies = chat_of(planted).replies([Asked((), "q20")] * 60)
    assert {reply.text for reply in replies} == {"plain", "bright"}
    assert [r.text for r in replies] == [r.text for r in chat_of(planted).replies([Asked((), "q20")] * 60)]


def test_a_killed_run_goes_on_without_a_lost_or_doubled_answer(tmp_path: Path, planted: Echo) -> None:
    log = tmp_path / "rollouts.jsonl"
    child = subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path)])
    while child.poll() is None and (not log.exists() or log.stat().st_size < 20_000):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with BranchTree.open(tmp_path, planted.model.fingerprint) as tree:
        kept = [(request, rollout) for request, rollout in tree.rollouts()]
    assert 20 <= len(kept) < ANSWERS
    resumed, cost = dialogues(tmp_path)
    whole, full_cost = dialogues(tmp_path / "other")
    assert resumed == whole
    # Tokens drawn before the kill and after it are those of one run, and each answer stands in the file once.
    assert sum(len(rollout.ids) for _, rollout in kept) + cost.decoded == full_cost.decoded
    with BranchTree.open(tmp_path, planted.model.fingerprint) as tree:
        found = {(request.prefix, rollout.seed): rollout for request, rollout in tree.rollouts()}
        assert all(found[request.prefix, rollout.seed] == rollout for request, rollout in kept)
        assert len(found) == sum(b'"seed"' in line for line in log.read_bytes().splitlines()) == ANSWERS
    assert dialogues(tmp_path)[1] == Cost()


def test_greedy_answers_to_one_prompt_are_drawn_once(tmp_path: Path, planted: Echo) -> None:
    engine = DialogueEngine(planted.model, 4)
    with BranchTree.open(tmp_path, engine.identity) as tree:
        chat = Chat(planted.model, engine, Settings(0.0, 1.0, 0, 2), tree=tree)
        first = chat.replies([Asked((), "q20"), Asked((), "q12"), Asked((), "q20")])
        assert chat.replies([Asked((), "q12")]) == first[1:2]
        assert first[0] == first[2]
        assert len(tree) == 2


def test_an_interrupted_batch_leaves_a_usable_engine(planted: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        replace(request, settings=Settings(0.0, 1.0, 0, 1 + i % 3))
        for i, request in enumerate(requests_of(planted, Settings()))
    ]
    engine = DialogueEngine(planted.model, 4)
    truth = in_order(engine.stream(requests))

    def stop(self: RowCache, a: int, b: int) -> None:
        self.ids[a], self.ids[b] = self.ids[b], self.ids[a]  # half of an exchange
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RowCache, "swap", stop)
        with pytest.raises(KeyboardInterrupt):
            list(engine.stream(requests))
    assert in_order(engine.stream(requests)) == truth


def test_orders_hold_what_they_promise() -> None:
    items = select_items()
    for order in ("consistent", "shuffled", "alternating"):
        plan = plan_dialogues(items, 30, 8, order, seed=3)
        assert len(plan) == 30
        assert all(len(set(dialogue)) == 8 for dialogue in plan)
        assert plan == plan_dialogues(items, 30, 8, order, seed=3)

    def switches(order: str) -> float:
        plan = plan_dialogues(items, 30, 8, order)  # type: ignore[arg-type]
        return float(np.mean([a.topic != b.topic for dialogue in plan for a, b in pairwise(dialogue)]))

    assert switches("consistent") < 0.1
    assert switches("alternating") == 1.0
    assert 0.5 < switches("shuffled") < 0.95
    by_vector = plan_dialogues(items, 4, 6, "consistent", embed=lambda texts: np.eye(len(texts)) + 0.1)
    assert all(len(set(dialogue)) == 6 for dialogue in by_vector)
    with pytest.raises(UsageError, match="enough items"):
        plan_dialogues(items[:3], 1, 8, "shuffled")
    with pytest.raises(UsageError, match="needs two topics"):
        plan_dialogues(select_items(("city",)), 1, 8, "alternating")
