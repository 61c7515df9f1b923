"""The whole way from a model to an index with graphs, stopped and gone on with."""

from dataclasses import replace
from pathlib import Path

import pytest
from makers import SMALL, texts, tiny

from cutaway.errors import UsageError
from cutaway.features.index import ReadyConfig, Term, build_ready, open_index, quick
from cutaway.features.index.view import search
from cutaway.features.neuron2graph import normalise

CONFIG = ReadyConfig(
    latents=20, k=3, train_tokens=600, epochs=2, batch=100, pool=300, graphs=1, graph_layers=(1,), windows=2
)
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
    assert [source.name for source in first.index.sources] == ["0", "1", "2", "topk-mlp-out.1"]
    reading = "tokens read for the dictionary"
    assert list(dict.fromkeys(seen)) == [reading, "steps of the dictionary", "texts read", "windows read", "graphs"]
    assert not (tmp_path / "dictionaries" / "topk-mlp-out.1" / "activations").exists()
    seen.clear()
    second = build_ready(model, corpus, tmp_path, CONFIG, filling=replace(SMALL, tokens=400), tick=tick)
    assert second.complete
    assert first.graphs + second.graphs <= 2
    assert not {reading, "steps of the dictionary"} & set(seen)
    index = open_index(tmp_path)
    graphs = [number for number in range(index.n_units) if index.note(number, "graph")]
    assert len(graphs) == first.graphs + second.graphs
    for number in graphs:
        nodes = [node for node in index.note(number, "graph")["nodes"] if node["role"] == "activating"]
        strongest = index.texts(number)[0]
        fired = normalise(model.decode([strongest.ids[strongest.at]]))
        assert fired in {each for node in nodes for each in node["tokens"]}
        for token in {each for node in nodes for each in node["tokens"]}:
            spelled = index.vocabulary.raw(index.vocabulary.spelled(token)[0])
            rows = search(index, [Term(spelled, "activating")], limit=500)
            assert index.place(number)[1] in {row["unit"] for row in rows["units"]}


@pytest.mark.parametrize("where", ["tokens read for the dictionary", "steps of the dictionary", "texts read"])
def test_stopped_anywhere_it_comes_to_the_same(tmp_path: Path, where: str) -> None:
    model, corpus = tiny(), texts(30, words=WORDS)
    config, filling = replace(CONFIG, graphs=0, layers=(0, 2), graph_layers=()), replace(SMALL, tokens=400)

    def stop(what: str, done: float, total: float) -> None:
        if what == where and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_ready(model, corpus, tmp_path / "stopped", config, filling=filling, tick=stop)
    build_ready(model, corpus, tmp_path / "stopped", config, filling=filling)
    build_ready(model, corpus, tmp_path / "whole", config, filling=filling)
    stopped, whole = open_index(tmp_path / "stopped"), open_index(tmp_path / "whole")
    assert [source.name for source in stopped.sources] == ["0", "2", "topk-mlp-out.1"]
    assert stopped.about["identity"] == whole.about["identity"]
    for number in range(0, stopped.n_units, 5):
        assert stopped.texts(number) == whole.texts(number)


def test_the_quick_settings_suit_the_model() -> None:
    assert quick(tiny(layers=3))[0].layers == (0, 1, 2)
    assert quick(tiny(layers=1))[0].layers == (0,)


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for bad in ({"latents": 0}, {"graphs": -1}, {"windows": 0}, {"k": 9, "latents": 8}):
        with pytest.raises(UsageError):
            ReadyConfig(**bad)
    with pytest.raises(UsageError, match="layer '9'"):
        build_ready(tiny(), texts(), tmp_path, replace(CONFIG, site="resid_post.9"))
    with pytest.raises(UsageError, match="layers=3: one of 0, 1, 2"):
        build_ready(tiny(), texts(), tmp_path, replace(CONFIG, layers=(0, 3)))
    with pytest.raises(UsageError, match="graph_layers=1: one of 0, 2"):
        build_ready(tiny(), texts(), tmp_path, replace(CONFIG, layers=(0, 2)))
    assert not list(tmp_path.iterdir())


def test_a_dictionary_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    few = replace(CONFIG, graphs=0, layers=(0,), graph_layers=())
    filling = replace(SMALL, tokens=100)
    build_ready(tiny(), texts(), tmp_path, few, filling=filling)
    with pytest.raises(UsageError, match="latents=20, not 21; choose another folder"):
        build_ready(tiny(), texts(), tmp_path, replace(few, latents=21), filling=filling)
    with pytest.raises(UsageError, match="dictionary of model="):
        build_ready(tiny(seed=1), texts(), tmp_path, few, filling=filling)
