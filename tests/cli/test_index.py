"""`cutaway index`: from a checkpoint and a text to pages that answer, in one command."""

import json
import re
import signal
import socket
import time
from pathlib import Path

import httpx2
import pytest
from command import start

SMALL = ("--tokens", 400, "--latents", 12, "--site", "resid_post.0")  # the planted MLPs are silent


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents that the planted tokenizer can read."""
    words = "Maria takes the train or the bus . So the answer is 1 . So the answer is 0 .".split()  # noqa: SIM905
    path = tmp_path / "texts.jsonl"
    texts = [" ".join(words[i % 7 :] * 3) for i in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_one_command_makes_the_index_and_the_second_time_finds_it(cutaway, checkpoint, corpus, home) -> None:
    given = ["index", checkpoint, "--corpus", corpus, *SMALL, "--graphs", 0, "--json", "--no-serve"]
    done = cutaway(*given)
    assert done.code == 0, done.err
    made = done.json
    assert made["folder"] == str(home / "index" / checkpoint.name)
    assert [source["name"] for source in made["sources"]] == ["0", "topk-resid-post.0"]
    assert cutaway(*given).json == made


@pytest.mark.slow
def test_the_app_opens_over_it_with_the_model_at_hand(checkpoint, corpus, home) -> None:
    """Starts the command as a process, and waits for its server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(home, ["index", checkpoint, "--corpus", corpus, *SMALL, "--port", port])
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while True:
        try:
            page = httpx2.get(f"{url}/features", follow_redirects=True)
            break
        except httpx2.HTTPError:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.2)
    assert page.status_code == 200
    assert "topk-resid-post" in page.text
    model = httpx2.get(f"{url}/api/features").json()["models"][0]["model"]
    tried = httpx2.post(f"{url}/api/features/{model}/try/0/0", json={"text": "the answer is 1"})
    assert tried.status_code == 200
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--layers", "0,x"], r"layers='0,x': numbers with commas"),
        (["--layers", "99"], r"layers=99: one of 0"),
        (["--latents", "0"], r"latents=0: 1 or more"),
        (["--corpus", "wikitxt"], r"wikitext"),
        (["--site", "resid_post.99"], r"layer '99'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_left(cutaway, checkpoint, corpus, home, options, match):
    done = cutaway("index", checkpoint, "--corpus", corpus, "--no-serve", *options)
    assert done.code == 2
    assert re.search(match, done.error)
    assert not (home / "index").exists()
