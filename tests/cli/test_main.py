"""The command line end to end: explain, what is kept of it, and one line for everything that goes wrong."""

import json
import sqlite3
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from command import OUTCOME, question, start

from cutaway.study import get_study

COSTS = ("seconds", "decoded", "prefilled", "reused")


def said(output: dict[str, Any]) -> dict[str, Any]:
    """What an explanation says, without what it cost."""
    return {k: v for k, v in output["anchors"].items() if k not in COSTS}


@pytest.fixture
def known(cutaway, planted, checkpoint) -> dict[str, Any]:
    """One explanation that is in the ledger."""
    return cutaway(*question(planted, checkpoint, "--json")).json


def flip(path: Path, at: int = -8) -> None:
    """Change one bit, low in the mantissa of a weight."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(bytes(data))


def test_explain_answers_and_the_second_time_from_the_ledger(cutaway, planted, checkpoint, known):
    assert known["known"] is False
    anchors = known["anchors"]
    assert anchors["answers"][0] in ("0", "1")
    assert anchors["decoded"] > 0
    assert anchors["prompt"] == planted.prompt
    assert len(anchors["curve"]) == len(anchors["sentences"]) + 1 == 5
    assert anchors["status"][0] == "anchor"
    again = cutaway(*question(planted, checkpoint, "--json"))
    assert again.code == 0
    assert again.json == {**known, "known": True}
    assert len(cutaway("runs", "--json").json) == 1
    fresh = cutaway(*question(planted, checkpoint, "--json", "--fresh")).json
    assert fresh["known"] is False
    assert said(fresh) == said(known)
    assert fresh["anchors"]["decoded"] == anchors["decoded"]
    assert len(cutaway("runs", "--json").json) == 2


def test_another_question_reuses_no_answer(cutaway, planted, checkpoint, known):
    other = cutaway(*question(planted, checkpoint, "--json", seed=1)).json
    assert other["known"] is False
    assert other["run"]["id"] != known["run"]["id"]
    more = cutaway(*question(planted, checkpoint, "--json", tokens=500)).json
    assert more["anchors"]["sentences"] == known["anchors"]["sentences"]
    assert more["anchors"]["decoded"] < 500, "the branch tree holds the first 300 tokens"


def test_explain_in_words_and_as_a_page(cutaway, planted, checkpoint, tmp_path):
    done = cutaway(*question(planted, checkpoint, report=tmp_path / "page.html"))
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    for part in (
        "did most to bring about the answer",
        "Instead of sentence 1",
        "control: 0 certified",
        "tokens decoded",
    ):
        assert part in text
    assert "page.html" in "".join(done.out.split())  # a long path is broken over lines
    page = (tmp_path / "page.html").read_text()
    assert page.lower().startswith("<!doctype html")
    assert "Plan" in page
    assert "little-reasoner" in page
    assert str(checkpoint.parent) not in page
    assert not list(tmp_path.glob("*.part"))


def test_the_paper_s_estimator_and_standard_input(cutaway, planted, checkpoint, monkeypatch, tmp_path):
    (tmp_path / "prompt").write_text(planted.prompt + "\n")
    arguments = question(planted, checkpoint, "--json", "--exact")
    arguments[1] = "-"
    with (tmp_path / "prompt").open() as text:
        monkeypatch.setattr("sys.stdin", text)
        found = cutaway(*arguments).json["anchors"]
    assert found["estimator"] == "uniform"
    assert found["complete"] is False, "300 tokens do not pay for 100 rollouts a boundary"


def test_the_chat_template_is_used_without_raw(cutaway, planted, checkpoint):
    arguments = [part for part in question(planted, checkpoint, "--json") if part != "--raw"]
    assert cutaway(*arguments).json["anchors"]["prompt"] == planted.prompt


def test_what_was_kept_can_be_shown_reported_exported_and_listed(cutaway, known, checkpoint, tmp_path):
    run = known["run"]["id"]
    assert run in cutaway("runs").out
    assert cutaway("runs", "--study", "nothing").out.count("\n") <= 1
    for name in (run, run[:5]):
        shown = cutaway("show", name, "--json").json
        assert shown["run"]["id"] == run
    assert [file["name"] for file in shown["artifacts"]] == ["anchors.json", "view.json"]
    assert {"anchors certified", "effect of sentence 1"} <= {item["name"] for item in shown["findings"]}
    assert "finished" in cutaway("show", run).out
    assert cutaway("report", run, "--out", tmp_path / "r.html").out == f"wrote {tmp_path / 'r.html'}\n"
    assert "Why this answer?" in (tmp_path / "r.html").read_text()
    exported = cutaway("export", run)
    assert exported.json
    assert str(checkpoint.parent) not in exported.out
    assert cutaway("export", run, "--out", tmp_path / "e.json").code == 0
    assert json.loads((tmp_path / "e.json").read_text()) == exported.json


def test_run_stores_and_the_study_list_knows_its_calibration(cutaway, planted, checkpoint):
    settings = {"prompt": planted.prompt, "model": checkpoint, "outcome": OUTCOME, "raw": "true", "embedder": ""}
    settings |= {"tokens": 200, "max_tokens": 60, "dtype": "float32"}
    pairs = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    made = cutaway("run", "thought-anchors", *pairs, "--json").json
    assert made["run"]["study"] == "thought-anchors"
    assert made["run"]["state"] == "finished"
    listed = cutaway("studies", "--json").json
    assert [row["calibration"] for row in listed if row["id"] == "thought-anchors"] == [None]
    assert "never" in cutaway("studies").out
    shown = cutaway("studies", "thought-anchors").out
    assert "arXiv:2506.19143" in shown
    for words in ("(needed)", "Sampling temperature.", "auto, float32 or bfloat16", "last calibration: never"):
        assert words in " ".join(shown.split())
    assert cutaway("studies", "query-circuits", "--json").json["settings"]["queries"]["default"] > 0
    assert "did you mean 'thought-anchors'" in cutaway("studies", "thought-anchor").err


def test_calibrate_is_stored_and_its_exit_code_says_whether_it_passed(cutaway):
    done = cutaway("calibrate", "thought-anchors", "--trials", 2, "--json")
    (found,) = done.json
    assert done.code == (0 if found["passed"] else 1)
    assert found["settings"]["trials"] == 2
    assert {rate["name"] for rate in found["rates"]} == {"band coverage", "plan first", "recall", "false anchors"}
    (row,) = [row for row in cutaway("studies", "--json").json if row["id"] == "thought-anchors"]
    assert row["calibration"]["state"] == "finished"


def test_ctrl_c_before_a_result_is_one_line(cutaway, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(get_study("thought-anchors")), "calibrate", stopped)
    done = cutaway("calibrate", "thought-anchors")
    assert done.code == 1
    assert done.err.strip().startswith("interrupted before there was a result")
    assert len(done.err.strip().splitlines()) == 1


def test_models_are_listed(cutaway):
    assert {"name", "installed", "sha256", "licence"} <= set(cutaway("models", "--json").json[0])
    assert cutaway("models").code == 0


def test_recheck_reproduces_and_names_changed_weights(cutaway, planted, own_copy):
    run = cutaway(*question(planted, own_copy, "--json")).json["run"]["id"]
    same = cutaway("recheck", run, "--json")
    assert (same.code, same.json["status"]) == (0, "reproduced")
    assert {each["verdict"] for each in same.json["comparisons"]} == {"identical"}
    flip(own_copy / "model.safetensors")
    changed = cutaway("recheck", run)
    assert changed.code == 1
    assert "weights of little-reasoner changed" in changed.out
    assert "not run again" in changed.out
    assert cutaway("recheck", run, "--json").json["changes"][0]["kind"] == "weights"
    anyway = cutaway("recheck", run, "--anyway", "--json")
    assert anyway.json["rerun"] is not None
    assert "recheck" in cutaway("show", run).out
    again = cutaway(*question(planted, own_copy, "--json")).json
    assert again["run"]["id"] == anyway.json["rerun"], "the answer of the weights as they are now"


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        ({"model": "/no/such/model"}, 2, "no model '/no/such/model'"),
        ({"model": "smollm2-135m-instrct"}, 2, "did you mean 'smollm2-135m-instruct'"),
        ({"tokens": 0}, 2, "tokens=0"),
        ({"max_tokens": 600}, 2, "shorten the prompt or lower max_tokens"),
        ({"outcome": "choice:zebra,yak", "tokens": 100}, 1, "no answer in 12 sampled traces"),
        ({"outcome": "chioce:a,b"}, 2, "did you mean 'choice'"),
        ({"outcome": "regex:("}, 2, "regex:("),
        ({"temperature": 0}, 2, "temperature=0"),
        ({"temperature": "nan"}, 2, "finite"),
        ({"top_p": 0}, 2, "top_p=0.0"),
        ({"seed": -1}, 2, "seed=-1"),
        ({"dtype": "float8"}, 2, "dtype='float8'"),
        ({"embedder": "no-such"}, 2, "'no-such' is not in the catalogue"),
        ({"ledger": "mysql://nowhere/x"}, 2, "use sqlite:///ledger.db"),
        ({"ledger": "not a url"}, 2, "not a database URL"),
        ({"ledger": "sqlite:////proc/none/x.db"}, 1, "cannot"),
        ({"report": "/proc/none/page.html"}, 1, "cannot write /proc/none/page.html"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__() if isinstance(value, dict) else "",
)
def test_bad_options_of_explain_are_one_line(cutaway, planted, checkpoint, options, code, part):
    arguments = question(planted, options.pop("model", checkpoint), **options)
    done = cutaway(*arguments)
    assert part in done.error
    assert done.code == code


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_is_refused(cutaway, planted, checkpoint, prompt):
    arguments = question(planted, checkpoint)
    arguments[1] = prompt
    done = cutaway(*arguments)
    assert "prompt" in done.error
    assert done.code == 2


def test_a_prompt_longer_than_the_context_is_refused(cutaway, planted, checkpoint):
    arguments = question(planted, checkpoint)
    arguments[1] = planted.prompt * 60
    assert "exceed the context of little-reasoner (256)" in cutaway(*arguments).error


def test_a_model_without_a_chat_template_names_raw(cutaway, planted, own_copy):
    (own_copy / "chat_template.jinja").unlink()
    arguments = [part for part in question(planted, own_copy) if part != "--raw"]
    done = cutaway(*arguments)
    assert "has no chat template" in done.error
    assert "raw" in done.error
    assert cutaway(*arguments, "--raw").code == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 10**9) + path.read_bytes()[8:])


@pytest.mark.parametrize("damage", [truncate, cut_header, lambda path: path.write_bytes(b""), Path.unlink])
def test_damaged_weights_are_one_line(cutaway, planted, own_copy, damage):
    damage(own_copy / "model.safetensors")
    done = cutaway(*question(planted, own_copy))
    assert done.code == 1
    assert "little-reasoner" in done.error


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "thought-anchor"], "did you mean 'thought-anchors'"),
        (["calibrate", "nothing"], "no study 'nothing'"),
        (["calibrate", "thought-anchors", "--trials", "0"], "trials=0"),
        (["run", "thought-anchors"], "prompt: field required"),
        (["run", "thought-anchors", "--set", "promt=x"], "did you mean 'prompt'"),
        (["run", "thought-anchors", "--set", "prompt"], "write key=value"),
        (["run", "thought-anchors", "--set", "prompt=x", "--set", "tokens=many"], "tokens=many"),
        (["runs", "--limit", "0"], "limit=0"),
        (["show", "none"], "no run 'none'"),
        (["report", "none"], "no run 'none'"),
        (["recheck", "none"], "no run 'none'"),
        (["export", "none"], "no run 'none'"),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_one_line_and_exit_2(cutaway, arguments, part):
    done = cutaway(*arguments)
    assert part in done.error
    assert done.code == 2


def test_an_unwritable_report_is_refused_before_sampling(cutaway, planted, checkpoint, tmp_path):
    assert "no directory" in cutaway(*question(planted, checkpoint, report=tmp_path / "none" / "r.html")).error
    assert "is a directory" in cutaway(*question(planted, checkpoint, report=tmp_path)).error
    assert cutaway("runs", "--json").json == []


def test_a_calibration_is_not_rechecked_but_measured_again(cutaway):
    cutaway("calibrate", "thought-anchors", "--trials", 1)
    (run,) = cutaway("runs", "--json").json
    assert "cutaway calibrate thought-anchors" in cutaway("recheck", run["id"]).error


def test_unwritable_pages_and_exports_are_one_line(cutaway, known):
    for command in ("report", "export"):
        done = cutaway(command, known["run"]["id"], "--out", "/proc/none/file")
        assert "cannot write /proc/none/file" in done.error
        assert done.code == 1


def test_a_file_that_is_no_ledger_is_one_line(cutaway, home):
    home.mkdir()
    (home / "ledger.db").write_text("not a database " * 100)
    assert "ledger" in cutaway("runs").error


def test_no_arguments_show_help(cutaway):
    done = cutaway()
    assert "explain" in done.out + done.err


def test_killed_explain_goes_on_and_says_what_an_uninterrupted_one_says(
    cutaway, planted, checkpoint, home, tmp_path, monkeypatch
):
    arguments = question(planted, checkpoint, "--json", tokens=4000, delta=0.001)
    process = start(home, arguments)
    rollouts = home / "trees"
    while process.poll() is None and not any(f.stat().st_size > 20_000 for f in rollouts.glob("*/rollouts.jsonl")):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    assert cutaway("runs", "--json").json == [], "a killed run stores nothing"
    after = cutaway(*arguments).json
    assert after["known"] is False
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "elsewhere"))
    untouched = cutaway(*arguments).json
    assert said(after) == said(untouched)
    assert after["anchors"]["decoded"] < untouched["anchors"]["decoded"]
    assert after["anchors"]["complete"]


def test_two_at_once_share_one_ledger_and_one_tree(cutaway, planted, checkpoint, home):
    arguments = question(planted, checkpoint, "--json", tokens=600)
    both = [start(home, arguments), start(home, arguments)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (json.loads(out) for out, _ in outputs)
    assert said(first) == said(second)
    stored = cutaway("runs", "--json").json
    assert {run["id"] for run in stored} == {first["run"]["id"], second["run"]["id"]}
    assert cutaway(*arguments).json["known"] is True
    with sqlite3.connect(home / "ledger.db") as book:
        assert book.execute("pragma integrity_check").fetchone() == ("ok",)
