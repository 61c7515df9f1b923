"""The whole way from a model to an index with graphs, stopped and gone on with."""

from dataclasses import replace
from pathlib import Path

import pytest
from makers import SMALL, texts, tiny

from cutaway.errors import UsageError
from cutaway.features.index import ReadyConfig, Term, build_ready, open_index
from cutaway.features.index.view import search

CONFIG = ReadyConfig(latents=20, k=3, train_tokens=600, batch=100, pool=300, graphs=1, graph_layers=(1,), windows=2)
WORDS = (" the", " a", "the", " paris", " Paris")


def test_everything_is_made_once(tmp_path: Path) -> None:
    model, corpus = tiny(), texts(60, words=(*WORDS, "\n"))
    seen: list[str] = []

    def tick(what: str, done: float, total: float) -> None:
        seen.append(what)
        if what == "graphs" and done == 1.0 and len(stopped) == 0:
            stopped.append(1)
            raise KeyboardInterrupt

    stopped: list[int] = []
    first = build_ready(model, corpus, tmp_path, CONFIG, filling=replace(SMALL, tokens=400), tick=tick)
    assert not first.complete
    assert first.graphs == 1
    assert [source.name for source in first.index.sources] == ["0", "1", "2", "topk-resid-post.1"]
    assert set(seen) == {"steps of the dictionary", "texts read", "windows read", "graphs"}
    seen.clear()
    second = build_ready(model, corpus, tmp_path, CONFIG, filling=replace(SMALL, tokens=400), tick=tick)
    assert second.complete
    assert first.graphs + second.graphs <= 2
    assert "steps of the dictionary" not in seen
    index = open_index(tmp_path)
    graphs = [number for number in range(index.n_units) if index.note(number, "graph")]
    assert len(graphs) == first.graphs + second.graphs
    for number in graphs:
        nodes = [node for node in index.note(number, "graph")["nodes"] if node["role"] == "activating"]
        for token in {each for node in nodes for each in node["tokens"]}:
            spelled = index.vocabulary.raw(index.vocabulary.spelled(token)[0])
            rows = search(index, [Term(spelled, "activating")], limit=500)
            assert index.place(number)[1] in {row["unit"] for row in rows["units"]}


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for bad in ({"latents": 0}, {"graphs": -1}, {"windows": 0}):
        with pytest.raises(UsageError):
            ReadyConfig(**bad)
    with pytest.raises(UsageError, match="layer '9'"):
        build_ready(tiny(), texts(), tmp_path, replace(CONFIG, site="resid_post.9"))
