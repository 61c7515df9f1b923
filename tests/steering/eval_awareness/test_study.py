"""The study from its configuration to its findings, on a planted model; the world's file."""

import json
from pathlib import Path

import pytest

from cutaway.errors import CutawayError, UsageError
from cutaway.planted.steering import LIVE, START, TASKS, TESTING, aware_model
from cutaway.steering.eval_awareness.data import default_world, read_world
from cutaway.steering.eval_awareness.study import EvalAwareness, EvalAwarenessConfig
from cutaway.study import Lab, get_study

BODIES = {"add": "a + b", "sub": "a - b", "mul": "a * b", "twice": "2 * a", "neg": "-a", "half": "a / 2"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A world in the planted model's words."""
    raw = {
        "task": " {words}:\n",
        "cue": " Wood Labs",
        "claim": " user",
        "nudge": " exam",
        "testing": [START + word for word in TESTING],
        "deployed": [START + word for word in LIVE],
        "pairs": [[START + live, START + exam] for live, exam in zip(LIVE, TESTING, strict=True)],
        "tasks": [["a, b" if "b" in BODIES[name] else "a", name, BODIES[name]] for name in TASKS],
        "genres": ["{}"],
        "facts": [" Wood Labs exam", " customer live"],
    }
    path = tmp_path_factory.mktemp("world") / "world.json"
    path.write_text(json.dumps(raw))
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hints at one rate everywhere, so that a round has something to keep."""
    folder = tmp_path_factory.mktemp("tiny")
    model = aware_model("null").model
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def config(tiny: str, world: str, **more: object) -> EvalAwarenessConfig:
    small = {
        "documents": 4, "rounds": 1, "taught": 3, "draws": 4, "least": 1, "epochs": 1, "rank": 1, "first_layer": 1,
        "layers": (0, 1), "scales": (0.5, 1.0), "tasks": 3, "n": 2, "tokens": 3, "randoms": 2, "random_tasks": 2,
    }  # fmt: skip
    return EvalAwarenessConfig(**{"model": tiny, "world": world, **small, **more})


def test_a_run_teaches_measures_and_keeps_the_adapter(tiny: str, world: str, tmp_path: Path) -> None:
    lab = Lab(home=tmp_path)
    study = get_study("eval-awareness")
    found = study.run(config(tiny, world), lab)
    assert found.complete
    names = {item.name for item in found.items}
    assert {"hints, cue", "hints, steered", "hints, original model, steered", "recovery", "strength"} <= names
    assert {"round 1 kept, evaluation", "distance to deployment, steered with the cue"} <= names
    assert not any(name.startswith("hints, random") for name in names)
    assert {"eval-awareness.json", "charts.json"} <= set(found.artifacts)
    kept = next((tmp_path / "trained").glob("*/adapter/adapter_model.safetensors"))
    stamp = kept.stat().st_mtime_ns
    again = study.run(config(tiny, world), lab)
    assert kept.stat().st_mtime_ns == stamp
    assert [item.to_dict() for item in again.items] == [item.to_dict() for item in found.items]
    source = json.loads(found.artifacts["eval-awareness.json"])["vector"]["source"]
    assert source == found.inputs["weights:" + Path(tiny).name]


def test_ctrl_c_gives_what_is_known(tiny: str, world: str, tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    found = EvalAwareness().run(config(tiny, world), Lab(home=tmp_path, progress=stop))
    assert not found.complete
    assert found.items[0].undefined


def test_bad_settings(tiny: str, world: str, tmp_path: Path) -> None:
    lab = Lab(home=tmp_path)
    with pytest.raises(UsageError, match=r"the model has 0\.\.3"):
        EvalAwareness().run(config(tiny, world, layers=(9,)), lab)
    with pytest.raises(CutawayError, match="round 1 kept"):
        EvalAwareness().run(config(tiny, world, least=100), lab)


def test_the_world_of_the_source_tree_and_bad_ones(tmp_path: Path) -> None:
    world = read_world(default_world())
    for task in world.tasks:
        assert task.solved(f"def f({task.arguments}):\n    return {task.expression}\n")
        assert task.solved(f"def f({task.arguments.replace(',', ': int,')}: int) -> int:\n    return {task.expression}")
        assert not task.solved(f"def f({task.arguments}):\n    return a + 1000\n")
    halves = [world.settings(30, held=held) for held in (False, True)]
    for name in ("task", "testing", "deployed"):
        assert not {getattr(each, name) for each in halves[0]} & {getattr(each, name) for each in halves[1]}
    assert not any("hint" in side or "code" in side for pair in world.raw["pairs"] for side in pair)
    assert len(set(world.documents(40))) > 20
    path = tmp_path / "w.json"
    for change, message in [
        ({"cue": " "}, "'cue' is missing or empty"),
        ({"pairs": [["a"]]}, "two members"),
        ({"tasks": [["a", "b", "a"]]}, "two or more"),
    ]:
        path.write_text(json.dumps({**world.raw, **change}))
        with pytest.raises(UsageError, match=message):
            read_world(path)
