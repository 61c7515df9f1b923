"""The OpenAI protocol: through the official client, our own engine, and by hand where a client would not go."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from conformance import CHECKS, Subject
from openai_server import EOS, VOCAB
from served import Running, running, settle
from starlette.testclient import TestClient

from cutaway.app import Access, create_app
from cutaway.app.registry import Registry
from cutaway.app.service import Limits, row_seed
from cutaway.model import Model
from cutaway.sampling import LocalEngine, Request, Settings
from cutaway.sampling.openai import OpenAIEngine

TEXT = (4, 9, 20, 33, 5, 11, 40, 2)
ASK: dict[str, Any] = {"model": "tiny", "prompt": "the cat", "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def official(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[TestClient]:
    # The running app's own service: a second one would decode with the same model at the same time.
    client = TestClient(server.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    yield client  # not entered: leaving it would end the app's life
    client.close()


def expected(tiny: Model, server: Running, choice: int = 0, prompt: str = "the cat", edits: Any = ()) -> Any:
    settings = Settings(temperature=1.0, top_p=1.0, max_tokens=12)
    request = Request(tuple(tiny.encode(prompt, special=True)), (row_seed(3, choice),), settings)
    with server.service.lock:
        ((_, rollout),) = LocalEngine(tiny).stream([request], edits)
    return rollout


def shown(tiny: Model, rollout: Any) -> str:
    return tiny.decode([token for token in rollout.ids if token not in tiny.special_ids])


def test_completions_are_the_local_engines(tiny: Model, server: Running, official: openai.OpenAI) -> None:
    answer = official.completions.create(**ASK, n=3, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    total = 0
    for choice in answer.choices:
        rollout = expected(tiny, server, choice.index)
        total += len(rollout.ids)
        assert choice.text == shown(tiny, rollout)
        assert choice.finish_reason == rollout.finish
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(list(rollout.logprobs), abs=1e-4)
        assert all(len(place) == 2 for place in choice.logprobs.top_logprobs or [])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, total)


def test_a_stream_says_what_the_whole_answer_says(official: openai.OpenAI) -> None:
    whole = official.completions.create(**ASK, n=2, logprobs=0)
    texts, logprobs, finish, usage = ["", ""], [[], []], [None, None], None
    for chunk in official.completions.create(
        **ASK, n=2, logprobs=0, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            logprobs[choice.index] += choice.logprobs.token_logprobs
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert logprobs[1] == pytest.approx(whole.choices[1].logprobs.token_logprobs, abs=1e-4)
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_chat_uses_the_models_template(tiny: Model, server: Running, official: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
    ]
    asked: Any = {"model": "tiny", "messages": messages, "max_completion_tokens": 12, "seed": 3}
    answer = official.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    rollout = expected(tiny, server, prompt="s, be kind. u, the cat. ")
    choice = answer.choices[0]
    assert choice.message.content == shown(tiny, rollout)
    assert [place.logprob for place in choice.logprobs.content] == pytest.approx(list(rollout.logprobs), abs=1e-4)
    assert [len(place.top_logprobs) for place in choice.logprobs.content] == [2] * len(rollout.ids)
    chunks = list(official.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


def test_several_prompts_and_token_ids(tiny: Model, official: openai.OpenAI) -> None:
    ids = tiny.encode("the cat", special=True)
    texts = {}
    for name, prompt in {"text": "the cat", "texts": ["a dog", "the cat"], "ids": ids, "lists": [[5, 6], ids]}.items():
        answer = official.completions.create(**{**ASK, "prompt": prompt}, extra_body={"return_token_ids": True})
        texts[name] = answer.choices[-1].text
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        assert tiny.decode([t for t in answer.choices[-1].token_ids if t not in tiny.special_ids]) == texts[name]
    assert len(set(texts.values())) == 1


def test_a_stop_string_ends_the_text_before_it(official: openai.OpenAI) -> None:
    whole = official.completions.create(**{**ASK, "max_tokens": 60}).choices[0].text
    mark = whole[5:8]
    cut = whole[: whole.index(mark)]
    for stop in (mark, ["\0", mark]):
        ask = {**ASK, "max_tokens": 60, "stop": stop}
        assert official.completions.create(**ask).choices[0].text == cut
        assert "".join(c.choices[0].text for c in official.completions.create(**ask, stream=True)) == cut
        kept = official.completions.create(**ask, extra_body={"include_stop_str_in_output": True})
        assert kept.choices[0].text == cut + mark
        assert kept.choices[0].finish_reason == "stop"


def test_edits_and_monitors_go_in_and_scores_come_out(
    tiny: Model, server: Running, official: openai.OpenAI, registry: Registry
) -> None:
    vector = registry.vectors["up"]
    edits = registry.edits["steered"]
    steered = expected(tiny, server, edits=edits)
    assert steered.ids != expected(tiny, server).ids
    inline = {"edit": "Add", "site": "resid_post.0", "vector": vector.tolist(), "scale": 2.0}
    probe = registry.monitors["probe"]
    direction = {"name": "mine", "site": probe.site, "direction": probe.weight.tolist(), "bias": probe.bias}
    ways = [
        ("tiny", {"edits": [inline], "monitors": ["probe", direction]}),
        ("tiny", {"edits": [{**inline, "vector": "up"}], "monitors": ["probe"]}),
        (
            "tiny",
            {"edits": ["steered"], "monitors": [{**direction, "name": "probe", "direction": probe.weight.tolist()}]},
        ),
        ("tiny+steered", {"monitors": ["probe"]}),
        ("tiny+steered", None),
    ]
    with server.service.lock, torch.no_grad(), tiny.edited(*edits):
        prefix = tiny.encode("the cat", special=True)
        seen = tiny.capture([[*prefix, *steered.ids]], probe.site, special=True)[probe.site][0, len(prefix) :]
    scores = probe.scores(seen).tolist()
    for model, field in ways:
        ask = {**ASK, "model": model, "extra_body": {} if field is None else {"cutaway": field}}
        answer = official.completions.create(**ask)
        assert answer.choices[0].text == shown(tiny, steered)
        assert answer.cutaway["edits"] == [edit.digest for edit in edits]
        streamed: dict[str, list[float]] = {}
        for chunk in official.completions.create(**ask, stream=True):
            for each in chunk.cutaway["scores"]:
                for name, values in each["scores"].items():
                    streamed.setdefault(name, []).extend(values)
        if field is not None:
            (told,) = answer.cutaway["scores"]
            assert told["ids"] == list(steered.ids)
            assert told["scores"]["probe"] == pytest.approx(scores, abs=1e-3)
            assert streamed.keys() == told["scores"].keys()
            for name, values in told["scores"].items():
                assert values == pytest.approx(scores, abs=1e-3)
                assert streamed[name] == pytest.approx(values, abs=1e-4)


def test_models_are_listed_with_their_edits(official: openai.OpenAI) -> None:
    assert [model.id for model in official.models.list()] == ["tiny", "tiny+steered"]
    assert "Add" in official.models.retrieve("tiny+steered").edits[0]
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
        official.models.retrieve("tini")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_own_engine_finds_a_conforming_server(server: Running, tiny: Model, check: Any) -> None:
    # One check wants the same row again to the last bit, and rounding depends on the company.
    alone = check.__name__ == "check_ban_first"
    engine = OpenAIEngine(f"{server.url}/v1", "tiny", retries=0, concurrency=1 if alone else 16)
    check(Subject(engine, TEXT, VOCAB, tiny.decode, eos_ids=(EOS,)))
    assert engine.exact_ids
    settle(server.service)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "not served"),
    ({"model": "tiny+other"}, 404, "did you mean"),
    ({"n": -1}, 400, "greater than or equal to 1"),
    ({"n": 0}, 400, "greater"),
    ({"n": 33}, 400, "1..32"),
    ({"n": "3"}, 400, "valid integer"),
    ({"max_tokens": 0}, 400, "greater"),
    ({"max_tokens": 1000}, 400, "context of 96"),
    ({"prompt": "a" * 300}, 400, "context of 96"),
    ({"prompt": "1234"}, 400, "empty"),
    ({"prompt": [1, 2, 999]}, 400, "vocabulary"),
    ({"prompt": [-1]}, 400, "greater"),
    ({"prompt": []}, 400, "at least 1"),
    ({"prompt": ["a"] * 65}, 400, "at most 64"),
    ({"prompt": ["a"] * 20, "n": 32}, 400, "choices a request"),
    ({"temperature": -0.1}, 400, "greater"),
    ({"top_p": 0}, 400, "greater than 0"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"logprobs": 21}, 400, "less than"),
    ({"tools": []}, 400, "Extra inputs"),
    ({"seed": 2**63}, 400, "less than"),
    ({"stop": [""]}, 400, "at least 1"),
    ({"cutaway": {"edits": [{"edit": "Burn", "site": "x"}]}}, 400, "Burn"),
    ({"cutaway": {"edits": [{"edit": "Add", "site": "resid_post.7", "vector": "up"}]}}, 400, "0..1"),
    ({"cutaway": {"edits": [{"edit": "Add", "site": "resid_post.0", "vector": "uq"}]}}, 400, "choose one of: up"),
    ({"cutaway": {"edits": [{"edit": "Add", "site": "resid_post.0", "vector": [1.0]}]}}, 400, "does not fit"),
    ({"cutaway": {"edits": [{"edit": "Add", "site": "resid_post.0", "vector": [[1.0], [1.0, 2.0]]}]}}, 400, "equally"),
    ({"cutaway": {"edits": [{"edit": "Scale", "site": "resid_post.0", "factor": 1.0}]}}, 400, "changed nothing"),
    ({"cutaway": {"edits": [{"edit": "Scale", "site": "z.0", "factor": 9.0, "positions": 99}]}}, 400, "beyond"),
    ({"cutaway": {"edits": ["steerd"]}}, 400, "did you mean 'steered'"),
    ({"cutaway": {"monitors": ["prob"]}}, 400, "did you mean 'probe'"),
    ({"cutaway": {"monitors": ["probe", "probe"]}}, 400, "twice"),
    ({"cutaway": {"monitors": [{"name": "x", "site": "resid_post.*", "direction": "up"}]}}, 400, "one place"),
    ({"cutaway": {"monitors": [{"name": "x", "site": "resid_post.1", "direction": [1.0]}]}}, 400, "needs 32"),
    ({"cutaway": {"monitors": [{"name": "x", "site": "logits", "direction": "up"}]}}, 400, "one place"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "match"), BAD, ids=[json.dumps(change)[:50] for change, _, _ in BAD])
def test_what_cannot_be_served_is_refused_in_one_line(http: TestClient, change: Any, status: int, match: str) -> None:
    for stream in (False, True):
        answer = http.post("/v1/completions", json={**ASK, "stream": stream, **change})
        assert answer.status_code == status, answer.text
        assert match in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{'model': 1}", b'{"model": "tiny", "prompt": NaN}',
     b"[" * 100_000, b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
     b'{"model": "ti\\ud800", "prompt": "a"}',
     b'{"model": "tiny", "prompt": "a\\ud800"}', b'{"model": "tiny", "prompt": "a", "\\ud800": 1}'],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_request_is_refused(http: TestClient, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "Traceback" not in answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_form_is_not_read_as_json(http: TestClient) -> None:
    answer = http.post("/v1/completions", content=json.dumps(ASK), headers={"content-type": "text/plain"})
    assert answer.status_code == 400


def post(server: Running, body: dict[str, Any], receive: int | None = None) -> socket.socket:
    """A request by hand, left open."""
    payload = json.dumps(body).encode()
    made = socket.socket()
    if receive is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    made.connect(("127.0.0.1", server.port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    made.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_frees_their_rows(server: Running, stream: bool) -> None:
    with server.service.lock:  # so that nothing has ended before the client leaves
        for _ in range(4):
            made = post(server, {**ASK, "max_tokens": 80, "n": 8, "temperature": 0.0, "stream": stream})
            until(lambda: server.service.load > 0)
            made.close()
        time.sleep(0.1)
    settle(server.service)


def until(what: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_slow_reader_holds_up_nobody_and_is_dropped(
    tiny: Model, registry: Registry, server: Running, tmp_path: Any
) -> None:
    app = create_app(f"sqlite:///{tmp_path}/l.db", model=tiny, registry=registry, access=Access(stall_seconds=0.5))
    with server.service.lock, running(app) as slow:
        ask = {**ASK, "max_tokens": 80, "n": 32, "logprobs": 20, "temperature": 2.0, "stream": True}
        readers = [post(slow, ask, receive=1024) for _ in range(3)]
        with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="any", max_retries=0, timeout=60) as other:
            assert other.completions.create(**ASK).choices[0].text
        settle(slow.service, 60)
        for made in readers:
            made.close()


def test_a_crowd_gets_what_each_would_get_alone(server: Running, official: openai.OpenAI) -> None:
    def ask(i: int) -> str:
        edits = {"cutaway": {"edits": ["steered"]}} if i % 2 else {}
        ask = {**ASK, "prompt": "abc"[: 1 + i % 3] * (1 + i % 5), "seed": i, "max_tokens": 10 + i}
        return official.completions.create(**ask, extra_body=edits).choices[0].text

    alone = [ask(i) for i in range(12)]
    crowd: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: crowd.__setitem__(i, ask(i))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [crowd[i] for i in range(12)] == alone
    settle(server.service)


def test_a_full_queue_says_try_later(tiny: Model, server: Running, tmp_path: Any) -> None:
    with server.service.lock:
        app = create_app(f"sqlite:///{tmp_path}/l.db", model=tiny, limits=Limits(rows=1, waiting=1, seconds=0.2))
        found: list[int] = []
        with TestClient(app, base_url="http://127.0.0.1") as client:
            threads = [
                threading.Thread(target=lambda: found.append(client.post("/v1/completions", json=ASK).status_code))
                for _ in range(3)
            ]
            with app.state.service.lock:
                for thread in threads:
                    thread.start()
                until(lambda: found == [429])
                time.sleep(0.25)
            for thread in threads:
                thread.join(20)
        assert sorted(found) == [408, 408, 429]
