"""Every kind of source gives the same documents; bad input."""

import gzip
import json
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutaway.errors import CutawayError, UsageError
from cutaway.features.corpus import open_corpus

TEXTS = ["First\nline.", "Zweiter «Text»", "third"]


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(rows)
    table = pa.table({"id": [1, 2, 3], "body": TEXTS})
    pq.write_table(table, tmp_path / "c.parquet")
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.arrow"):
        assert list(open_corpus(tmp_path / name, field="body")) == TEXTS
        assert list(open_corpus(tmp_path / name, field="body", limit=2)) == TEXTS[:2]
        with pytest.raises(UsageError, match="'text'"):
            list(open_corpus(tmp_path / name))
    assert list(open_corpus(TEXTS)) == TEXTS


def test_data_set_folders_and_splits(tmp_path: Path) -> None:
    for split, text in (("train", "one"), ("test", "two")):
        (tmp_path / "disk" / split).mkdir(parents=True)
        table = pa.table({"text": [text]})
        place = tmp_path / "disk" / split / "data-00000-of-00001.arrow"
        with pa.OSFile(str(place), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    for name in ("disk", "hub"):
        assert list(open_corpus(tmp_path / name, split="test")) == ["two"]
        with pytest.raises(UsageError, match="splits test, train"):
            open_corpus(tmp_path / name)
        with pytest.raises(UsageError, match="did you mean 'test'"):
            open_corpus(tmp_path / name, split="tests")


def test_data_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a download leaves them in the hub's cache; the network is off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "datasets--someone--stories"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    for split in ("train", "test"):
        place = kept / "snapshots" / ("a" * 40) / "data" / f"{split}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"of {split}"]}), place)
    found = open_corpus("someone/stories", split="test")
    assert (found.name, list(found)) == ("someone/stories", ["of test"])
    with pytest.raises(UsageError, match="splits test, train"):
        open_corpus("someone/stories")
    with pytest.raises(UsageError, match="no file or folder, and the Hugging Face hub gave no such data set"):
        open_corpus("someone/poems")


def test_text_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    text = "".join(f"paragraph {i} " + "x" * 3000 + "\n\n" for i in range(7))
    (tmp_path / "book.txt").write_text(text)
    parts = list(open_corpus(tmp_path / "book.txt"))
    assert "".join(parts) == text
    assert [part.count("paragraph") for part in parts] == [3, 3, 1]


def test_the_small_corpora() -> None:
    articles = list(open_corpus("wikitext"))
    assert len(articles) == 60
    assert all(article.strip().startswith("= ") for article in articles)
    assert articles[0].strip().startswith("= Homarus gammarus =")
    assert sum(map(len, open_corpus("shakespeare"))) == 1115394


def test_the_digest_follows_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.txt").write_text("hello")
    (tmp_path / "c.txt").write_text("hello!")
    a, b, c = (open_corpus(tmp_path / f"{name}.txt").digest for name in "abc")
    assert a == b != c
    assert open_corpus(["ab", "c"]).digest != open_corpus(["a", "bc"]).digest
    assert open_corpus(["ab"], limit=1).digest != open_corpus(["ab"]).digest


def test_documents_are_parted_whole() -> None:
    for n, cut in ((4, 2), (5, 3), (8, 6)):
        first, rest = open_corpus([f"text {i}" for i in range(n)]).parts()
        assert (list(first) + list(rest), len(first.texts)) == ([f"text {i}" for i in range(n)], cut)
    with pytest.raises(UsageError, match="3 documents; 4 or more"):
        open_corpus(TEXTS).parts()


def test_bad_input(tmp_path: Path) -> None:
    for source, said in (
        ("wikitexts", "did you mean 'wikitext'"),
        ([" ", ""], "none has any text"),
        (tmp_path, "holds no text"),
    ):
        with pytest.raises(UsageError, match=said):
            open_corpus(source)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UsageError, match="a corpus is one of"):
        open_corpus(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("{\n")
    with pytest.raises(CutawayError, match="line 1: not JSON"):
        list(open_corpus(tmp_path / "a.jsonl"))
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(CutawayError, match="cannot be read"):
        list(open_corpus(tmp_path / "a.parquet"))
    with pytest.raises(UsageError, match="limit=0"):
        open_corpus("wikitext", limit=0)
