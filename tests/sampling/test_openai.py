"""The OpenAI engine against a real server process that samples by itself, well and badly."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from conformance import CHECKS, Subject, check_engine
from openai_server import CONTEXT, EOS, NAME, VOCAB, tiny_model, tiny_tokenizer
from scipy.stats import chisquare
from transformers import LlamaForCausalLM

from cutaway.errors import CutawayError, UsageError
from cutaway.sampling.openai import OpenAIEngine
from cutaway.sampling.tree import BranchTree, sample
from cutaway.sampling.types import Cost, Request, Rollout, Settings

PROGRAM = Path(__file__).with_name("openai_server.py")
TEXT = (0, 5, 12, 30, 2, 9, 17, 40)
ONE = Request(TEXT, (0,), Settings(max_tokens=6))
Connect = Callable[..., OpenAIEngine]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, str(PROGRAM), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().split()[1]}"
        server.kill()


@pytest.fixture
def connect(address: str, monkeypatch: pytest.MonkeyPatch) -> Connect:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def to(mode: str = "ok", **options: Any) -> OpenAIEngine:
        return OpenAIEngine(f"{address}/{mode}/v1", **options)

    return to


@cache
def model() -> LlamaForCausalLM:
    return tiny_model()


@torch.inference_mode()
def teacher(prefix: Sequence[int], ids: Sequence[int]) -> list[float]:
    rows = model()(torch.tensor([[*prefix, *ids]])).logits[0].log_softmax(-1)
    return [float(rows[len(prefix) - 1 + i, token]) for i, token in enumerate(ids)]


def one_line(error: pytest.ExceptionInfo[CutawayError], address: str) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert address in text
    assert len(text) < 500
    return text


class TestConformance:
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_server_that_answers_like_vllm(self, connect: Connect, check: Callable[[Subject], None]) -> None:
        engine = connect("ok")
        check(Subject(engine, TEXT, VOCAB, tiny_tokenizer().decode, (EOS,), teacher))
        assert engine.exact_ids

    def test_server_that_gives_text_alone(self, connect: Connect) -> None:
        exact, rebuilt = connect("ok"), connect("no-ids", tokenizer=tiny_tokenizer())
        ask = [Request(TEXT[:n], tuple(range(12)), Settings(temperature=1.0, max_tokens=20)) for n in (3, 8)]
        rows = {(i, row.seed): row for i, row in rebuilt.stream(ask)}
        truth = {(i, row.seed): row for i, row in exact.stream(ask)}
        whole = {key for key, row in truth.items() if 0 not in row.ids}  # text does not show a <s>
        assert len(whole) > 12
        assert {key: rows[key] for key in whole} == {key: truth[key] for key in whole}
        assert {rows[key].finish for key in whole} == {"stop", "length"}
        assert (exact.exact_ids, rebuilt.exact_ids) == (True, False)

    def test_stop_string_that_the_server_cuts_off(self, connect: Connect) -> None:
        tokenizer = tiny_tokenizer()
        [(_, row)] = connect("ok").stream([ONE])
        mark = tokenizer.decode(row.ids[2:3])
        ask = replace(ONE, settings=replace(ONE.settings, stop=(mark,)))
        [(_, cut)] = connect("no-ids", tokenizer=tokenizer).stream([ask])
        assert cut.ids == row.ids[: len(cut.ids)]
        assert mark not in tokenizer.decode(cut.ids)
        assert cut.finish == "stop"
        assert all(math.isnan(x) for x in cut.logprobs)  # the server's count does not fit what is left

    def test_server_that_refuses_unknown_fields(self, connect: Connect) -> None:
        engine = connect("strict", tokenizer=tiny_tokenizer())
        assert list(engine.stream([ONE])) == list(connect("ok").stream([ONE]))
        with pytest.raises(UsageError, match="top_k"):
            list(engine.stream([replace(ONE, settings=Settings(top_k=3))]))

    @pytest.mark.slow
    def test_server_named_by_the_environment(self) -> None:
        url = os.environ.get("CUTAWAY_OPENAI_URL")
        if not url:
            pytest.skip("CUTAWAY_OPENAI_URL names no server; set it to one like http://127.0.0.1:8000/v1")
        from transformers import AutoTokenizer

        engine = OpenAIEngine(url)
        # The served name is the checkpoint's unless CUTAWAY_OPENAI_TOKENIZER says otherwise.
        tokenizer = AutoTokenizer.from_pretrained(os.environ.get("CUTAWAY_OPENAI_TOKENIZER", engine.model))
        text = tuple(tokenizer.encode("The three largest cities of France are Paris, Lyon and"))
        check_engine(Subject(engine, text, len(tokenizer), tokenizer.decode, (tokenizer.eos_token_id,), max_tokens=16))


class TestDraws:
    def test_ban_first_is_the_conditional_distribution(self, connect: Connect) -> None:
        chosen = Settings(temperature=0.8, top_p=0.9, max_tokens=1)
        with torch.inference_mode():
            probs = (model()(torch.tensor([TEXT])).logits[0, -1].double() / 0.8).softmax(-1)
        top, ids = probs.sort(descending=True)
        kept = (top.cumsum(0) - top) < 0.9
        banned = int(ids[0])
        expected = {int(i): float(p) for i, p in zip(ids[kept], top[kept], strict=True) if i != banned}
        engine = connect("ok")
        rows = [row for _, row in engine.stream([Request(TEXT, tuple(range(250)), chosen, banned)])]
        counts = Counter(row.ids[0] for row in rows)
        assert counts.keys() <= expected.keys()
        scale = len(rows) / sum(expected.values())
        common = [token for token, p in expected.items() if p * scale >= 5]
        assert len(common) >= 3
        rest = [len(rows) - sum(counts[t] for t in common), sum(expected.values()) * scale]
        rest[1] -= sum(expected[t] * scale for t in common)
        found = [counts[t] for t in common] + ([rest[0]] if rest[1] > 0 else [])
        wanted = [expected[t] * scale for t in common] + ([rest[1]] if rest[1] > 0 else [])
        assert chisquare(found, wanted).pvalue > 1e-3
        # Each rejected draw is paid for: one token each.
        assert engine.cost.decoded > len(rows) / (1 - 0.5 * float(top[0]))

    def test_ban_first_keeps_the_row_of_an_accepted_seed(self, connect: Connect) -> None:
        free = {row.seed: row for _, row in connect().stream([replace(ONE, seeds=tuple(range(20)))])}
        banned = next(iter(free.values())).ids[0]
        ask = replace(ONE, seeds=tuple(range(20)), ban_first=banned)
        for _, row in connect().stream([ask]):
            assert row.ids[0] != banned
            if free[row.seed].ids[0] != banned:
                assert row == free[row.seed]

    def test_ban_first_that_leaves_nothing(self, connect: Connect, address: str) -> None:
        [(_, greedy)] = connect().stream([replace(ONE, settings=Settings(temperature=0.0, max_tokens=1))])
        for settings, tries in ((Settings(temperature=0.0), 1), (Settings(top_k=1), 4)):
            with pytest.raises(CutawayError, match=f": {tries} draws of seed 0 all began with this token"):
                list(connect(ban_tries=4).stream([Request(TEXT, (0,), settings, greedy.ids[0])]))

    def test_ban_first_needs_ids(self, connect: Connect) -> None:
        with pytest.raises(UsageError, match="gives no token ids to compare with"):
            list(connect("no-ids", tokenizer=tiny_tokenizer()).stream([replace(ONE, ban_first=3)]))

    def test_cost_comes_from_usage(self, connect: Connect) -> None:
        engine = connect()
        fresh = Request((0, 3, 3, 3, 44), (0, 1, 2), Settings(max_tokens=5))
        decoded = sum(len(row.ids) for _, row in engine.stream([fresh]))
        assert engine.cost == Cost(decoded=decoded, prefilled=5 + 1 + 1, reused=4 + 4)

    def test_token_probs_only_where_they_are_known(self, connect: Connect) -> None:
        plain = Settings(temperature=1.0, top_p=1.0)
        probs = connect().token_probs(TEXT, (3, 9), plain)
        assert probs == pytest.approx([math.exp(x) for x in teacher(TEXT, (3, 9))], abs=1e-5)
        for other in (Settings(), replace(plain, top_k=4), replace(plain, temperature=0.0)):
            assert connect().token_probs(TEXT, (3, 9), other) is None
        assert connect("no-echo").token_probs(TEXT, (3, 9), plain) is None
        with pytest.raises(UsageError, match="vocabulary"):
            connect(tokenizer=tiny_tokenizer()).token_probs(TEXT, (VOCAB,), plain)

    def test_into_a_tree(self, connect: Connect, tmp_path: Path) -> None:
        engine, ask = connect(), [Request(TEXT[:n], tuple(range(10)), Settings(max_tokens=8)) for n in (4, 8)]
        with BranchTree.open(tmp_path, engine.identity) as tree:
            part = sample(tree, engine, ask)
            for _ in range(5):
                next(part)
            del part
            rows = sorted(sample(tree, engine, ask), key=repr)
            spent = engine.cost
            assert sorted(sample(tree, engine, ask), key=repr) == rows
        assert len(rows) == 20
        assert engine.cost == spent

    def test_few_at_once(self, connect: Connect, address: str) -> None:
        engine = connect("two", model=NAME, concurrency=3)  # a mode of its own: nobody else counts there
        assert len(list(engine.stream([replace(ONE, seeds=tuple(range(30)))]))) == 30
        with urlopen(f"{address}/two/stats") as answer:
            assert json.load(answer) == {"requests": 30, "now": 0, "most_at_once": 3}


class TestTrouble:
    @pytest.mark.parametrize(
        ("mode", "said"),
        [
            ("html", "begins '<html> <body>Welcome"),
            ("not-json", "did not answer as the OpenAI API does"),
            ("malformed", "choices: Field required"),
            ("wrong-types", "token_ids.0: Input should be a valid integer"),
            ("odd-finish", "finish_reason: Input should be 'stop' or 'length'"),
            ("too-long", "gave 7 tokens for max_tokens=6"),
            ("truncated", "cannot be reached or broke off"),
            ("500", "still answers 500 after 1 retries"),
            ("429", "still answers 429 after 1 retries (Rate limit reached)"),
        ],
    )
    def test_bad_answers(self, connect: Connect, address: str, mode: str, said: str) -> None:
        ask = Request((*TEXT[:0:-1], 3), (5,), Settings(max_tokens=6, temperature=0.0))
        with pytest.raises(CutawayError) as error:
            list(connect(mode, retries=1).stream([ask]))
        assert said in one_line(error, f"{address}/{mode}/v1")

    @pytest.mark.parametrize("mode", ["slow", "drip"])
    def test_no_answer_in_time(self, connect: Connect, address: str, mode: str) -> None:
        began = time.monotonic()
        with pytest.raises(CutawayError, match=r"no answer within 1\.2 s") as error:
            list(connect(mode, time_limit=1.2).stream([ONE]))
        one_line(error, address)
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize(("mode", "requests"), [("500-then-ok", 6), ("429-then-ok", 4)])
    def test_passing_trouble_is_retried(self, connect: Connect, address: str, mode: str, requests: int) -> None:
        ask = replace(ONE, seeds=(11, 12))
        assert sorted(connect(mode).stream([ask]), key=repr) == sorted(connect().stream([ask]), key=repr)
        with urlopen(f"{address}/{mode}/stats") as answer:
            assert json.load(answer)["requests"] == requests

    def test_nobody_there(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(CutawayError, match="cannot be reached") as error:
                OpenAIEngine(url)
        assert "is the server running there?" in one_line(error, f"{url}/v1")

    def test_no_such_host(self) -> None:
        with pytest.raises(CutawayError, match="cannot be reached"):
            OpenAIEngine("http://no-such-host.invalid/v1", retries=0)

    @pytest.mark.parametrize(
        ("mode", "said"),
        [("html-models", "did not answer as the OpenAI API does"), ("empty", "data: List should have")],
    )
    def test_no_models(self, connect: Connect, mode: str, said: str) -> None:
        with pytest.raises(CutawayError, match=said):
            connect(mode)

    def test_address_without_the_api(self, address: str) -> None:
        with pytest.raises(UsageError, match=r"refused the request \(404: no /elsewhere/models here"):
            OpenAIEngine(f"{address}/elsewhere")

    def test_done_rows_outlive_a_failure(self, connect: Connect) -> None:
        good = Request(TEXT, tuple(range(5)), Settings(max_tokens=4))
        bad = Request(TEXT, (0,), Settings(max_tokens=CONTEXT))
        rows: list[tuple[int, Rollout]] = []
        answers = connect(concurrency=1).stream([good, bad])
        with pytest.raises(UsageError, match="maximum context length"):
            rows.extend(answers)
        assert len(rows) == 5


class TestModelsAndKeys:
    def test_the_only_model_is_the_default(self, connect: Connect) -> None:
        assert connect().identity == connect(model=NAME).identity == f"openai:{NAME}"
        assert connect("two", model="other-llama").identity == "openai:other-llama"

    def test_unknown_model(self, connect: Connect) -> None:
        with pytest.raises(UsageError, match=r"does not serve model 'tiny-lama'; did you mean 'tiny-llama'\?"):
            connect(model="tiny-lama")
        with pytest.raises(UsageError, match="choose one of: other-llama, tiny-llama"):
            connect("two")

    def test_key_from_argument_and_environment(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(list(connect("key", api_key="sk-right").stream([ONE]))) == 1
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
        assert len(list(connect("key").stream([ONE]))) == 1

    def test_key_is_never_shown(self, connect: Connect) -> None:
        engine = connect("key", api_key="sk-secret-and-wrong")
        with pytest.raises(CutawayError, match="set OPENAI_API_KEY") as error:
            list(engine.stream([ONE]))
        shown = "".join([str(error.value), repr(engine), *traceback.format_exception(error.value)])
        assert "sk-secret" not in shown
        assert "Incorrect API key provided: <key>" in str(error.value)

    @pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http:///v1", ""])
    def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(UsageError, match="must look like http"):
            OpenAIEngine(url)

    def test_password_in_the_address(self) -> None:
        with pytest.raises(UsageError, match="OPENAI_API_KEY") as error:
            OpenAIEngine("http://me:hunter2@127.0.0.1/v1")
        assert "hunter2" not in str(error.value)

    def test_contradictions(self, connect: Connect) -> None:
        for options in ({"concurrency": 0}, {"time_limit": 0.0}, {"retries": -1}, {"ban_tries": 0}):
            with pytest.raises(UsageError, match=next(iter(options))):
                connect(**options)

    def test_edits(self, connect: Connect) -> None:
        with pytest.raises(UsageError, match="cannot edit its model"):
            connect().stream([ONE], edits=("something",))  # type: ignore[arg-type]

    def test_no_ids_and_no_tokenizer(self, connect: Connect) -> None:
        with pytest.raises(CutawayError, match="pass the model's tokenizer"):
            list(connect("no-ids").stream([ONE]))

    def test_missing_client(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(CutawayError, match=r"pip install 'cutaway\[scale\]'"):
            connect()


# A job started in the background of a script inherits "ignore SIGINT"; whoever types Ctrl-C does not.
LEAVE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from cutaway.sampling.openai import OpenAIEngine
from cutaway.sampling.types import Request, Settings
engine = OpenAIEngine(sys.argv[1])
rows = engine.stream([Request((1, 2), (0, 1), Settings(max_tokens=40))])
{act}
"""


class TestLeaving:
    def test_inside_a_running_loop(self, connect: Connect) -> None:
        async def notebook() -> int:
            return len(list(connect().stream([ONE])))

        assert asyncio.run(notebook()) == 1

    def test_interrupt_does_not_wait_for_the_server(self, address: str) -> None:
        code = LEAVE.format(act="print('asking', flush=True); next(rows)")
        command = [sys.executable, "-c", code, f"{address}/slow/v1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.5)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate()
        assert time.monotonic() - began < 10
        assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"

    def test_exit_with_an_unfinished_iterator(self, address: str) -> None:
        code = LEAVE.format(act="next(rows)")
        done = subprocess.run(
            [sys.executable, "-c", code, f"{address}/ok/v1"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
