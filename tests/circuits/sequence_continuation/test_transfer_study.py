"""Transfer with its control, overlaps, side effects; the study end to end on a planted model; its calibration."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from cutaway.circuits.nodes import Nodes, node_means
from cutaway.circuits.sequence_continuation.data import Rows, prepare, read_prompts
from cutaway.circuits.sequence_continuation.method import Bench, prune
from cutaway.circuits.sequence_continuation.study import SequenceConfig, SequenceContinuation
from cutaway.circuits.sequence_continuation.transfer import overlaps, random_nodes, side_effects, transfer
from cutaway.errors import UsageError
from cutaway.model import Replace, load_model
from cutaway.planted.sequence import Sequence
from cutaway.study import Lab, Progress, parse_config

FOLDER = Path(__file__).parents[3] / "data" / "sequence-continuation"


def test_transfer_is_high_and_low_as_planted(planted: Sequence, held: dict[str, Rows]) -> None:
    benches = {task: Bench(planted.model, held[task]) for task in held}
    found = transfer(planted.truth.nodes, benches, controls=9)
    assert found.complete
    assert found.cell("numerals", "numwords").score.low > 80
    assert found.cell("numwords", "numerals").score.low > 80
    assert found.cell("numerals", "months backwards").score.high < 20
    assert found.cell("months backwards", "numwords").score.high < 20
    own = found.cell("numerals", "numerals")
    assert own.p == 1 / 10
    mean, low, high = own.random_band
    assert low <= mean <= high < 80
    sets = random_nodes(benches["numerals"].nodes, planted.truth.nodes["numerals"], 9, np.random.default_rng([0, 0]))
    assert np.allclose(own.random, benches["numerals"].scores(sets), atol=1e-3)
    assert len(found.to_frame()) == 9


def test_random_circuits_have_the_same_size() -> None:
    nodes = Nodes(4, 5)
    like = ("z.0.1", "z.3.3", "mlp_out.2", "z.1.1")
    sets = random_nodes(nodes, like, 30, np.random.default_rng(0))
    names = [nodes.kept(row) for row in sets]
    assert {sum(n.startswith("z.") for n in row) for row in names} == {3}
    assert {len(row) for row in names} == {4}
    assert len({*names}) > 20


def test_overlap_and_its_p() -> None:
    nodes = Nodes(4, 5)
    circuits = {"a": ("z.0.0", "z.1.1", "mlp_out.0"), "b": ("z.0.0", "z.2.2", "z.3.3", "mlp_out.0")}
    (found,) = overlaps(nodes, circuits)
    assert found.shared == ("z.0.0", "mlp_out.0")
    assert found.jaccard == pytest.approx(2 / 5)
    assert found.p == pytest.approx(1 - hypergeom.pmf(0, 20, 2, 3))


def test_side_effects_equal_greedy_decoding(planted: Sequence, rows: dict[str, Rows], held: dict[str, Rows]) -> None:
    """Against a loop that decodes with the heads replaced; and planted: one list breaks, the other does not."""
    means = node_means(planted.model, rows["numerals"].corrupted)
    asked = {task: [(p.text(), f" {p.answer}") for p in held[task].prompts] for task in held}
    heads = {"up": ("z.2.2",), "down": ("z.2.0", "mlp_out.0")}
    found = {(e.circuit, e.task): e for e in side_effects(planted.model, heads, means, asked, controls=4)}
    assert found["up", "numerals"].untouched.value == 1.0
    assert found["up", "numerals"].removed.value == 0.0
    assert found["down", "numerals"].removed.value == 1.0
    assert found["down", "months backwards"].removed.value == 0.0
    assert all(0 < e.p <= 1 and len(e.random) == 4 for e in found.values())
    layer_mean = means.z.mean((0, 2))[2, 2]
    with planted.model.edited(Replace("z.2.2", layer_mean)):
        hits = 0
        for prompt, answer in asked["numerals"]:
            ids = torch.tensor([planted.model.encode(prompt)])
            written = planted.model.hf.generate(ids, max_new_tokens=1, do_sample=False)[0, ids.shape[1] :]
            hits += planted.model.decode(written.tolist()) == answer
    assert hits == 0


class PlantedLab(Lab):
    """A lab whose only model is a planted one."""

    planted: Sequence

    def model(self, spec: str | Path, dtype: str = "auto") -> object:  # type: ignore[override]
        return self.planted.model


def test_the_study_on_a_planted_model(planted: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted model knows its own carriers only, so the study's are exchanged for them."""
    from cutaway.circuits.sequence_continuation import data

    monkeypatch.setitem(data.CARRIERS, "done", planted.words)
    monkeypatch.setitem(data.CARRIERS, "lost", planted.words)
    lab = PlantedLab(home=tmp_path)
    lab.planted = planted
    config = SequenceConfig(
        tasks="numerals,numwords,months backwards,months",
        candidates=12,
        prompts=6,
        controls=3,
        effects=1,
        edge_prompts=2,
    )
    found = SequenceContinuation().run(config, lab)
    assert found.complete
    names = {item.name: item for item in found.items}
    assert "months: circuit" in names, "it counts months backwards only, and the study says why"
    assert names["months: circuit"].undefined
    cell = names["circuit of numerals on numwords ('lost', held out)"]
    assert cell.value is not None
    assert cell.low is not None
    assert cell.low > 80
    assert cell.control is not None
    assert found.result.circuits["numerals"].nodes == planted.truth.nodes["numerals"]
    saved = json.loads(found.artifacts["circuits.json"])
    assert set(saved["circuits"]) == set(planted.tasks)
    assert "prompts kept" in str(found.items[0])
    assert "charts.json" in found.artifacts


def test_ctrl_c_in_one_circuit_ends_the_run(planted: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.circuits.sequence_continuation import data

    monkeypatch.setitem(data.CARRIERS, "done", planted.words)
    monkeypatch.setitem(data.CARRIERS, "lost", planted.words)

    def stop(progress: Progress) -> None:
        if progress.note.startswith("numwords"):
            raise KeyboardInterrupt

    lab = PlantedLab(home=tmp_path, progress=stop)
    lab.planted = planted
    config = SequenceConfig(tasks="numerals,numwords,months backwards", candidates=12, prompts=6, controls=3)
    found = SequenceContinuation().run(config, lab)
    assert not found.complete
    assert set(found.result.circuits) == {"numerals", "numwords"}
    assert not found.result.circuits["numwords"].complete
    assert not found.result.transfer.cells


def test_settings_that_contradict_are_refused() -> None:
    study = SequenceContinuation()
    for key, value in (("held_out", "done"), ("verb", "dones"), ("tasks", "numeral"), ("threshold", "0")):
        with pytest.raises(UsageError, match=key.rstrip("s")):
            parse_config(study, {key: value})


def test_calibration_in_short() -> None:
    found = SequenceContinuation().calibrate(Lab(), trials=1)
    assert {rate.name: rate.rate for rate in found.rates if rate.at_least} == {
        "circuit": 1.0,
        "connections": 1.0,
        "transfer kept": 1.0,
        "transfer lost": 1.0,
        "refused": 1.0,
    }


@pytest.mark.slow  # twelve planted models, pruned and scored
def test_calibration_passes() -> None:
    assert SequenceContinuation().calibrate(Lab()).passed


@pytest.mark.slow  # SmolLM2: minutes of forwards
def test_smollm2_held_out_score_beats_random_circuits(tmp_path: Path) -> None:
    config = SequenceConfig(prompts=16, candidates=96, controls=9, edge_prompts=0, effects=0)
    found = SequenceContinuation().run(config, Lab(home=tmp_path))
    for task in found.result.circuits:
        cell = found.result.transfer.cell(task, task)
        assert cell.score.value > max(cell.random)


@pytest.mark.slow  # a chat model of half a billion parameters
def test_the_small_chat_model_where_it_continues_sequences(tmp_path: Path) -> None:
    spec = os.environ.get("CUTAWAY_SLOW_MODEL")
    if not spec:
        pytest.skip("CUTAWAY_SLOW_MODEL names no model; set it to a chat model's directory or GGUF file")
    config = SequenceConfig(model=spec, prompts=8, candidates=48, controls=5, edge_prompts=0, effects=0, minutes=20.0)
    found = SequenceContinuation().run(config, Lab(home=tmp_path))
    for task in found.result.circuits:
        assert (
            found.result.transfer.cell(task, task).score.value > found.result.transfer.cell(task, task).random_band[0]
        )


@pytest.mark.slow  # GPT-2 Small against the published figures
def test_gpt2_small_reproduces_the_published_numerals_circuit() -> None:
    spec = os.environ.get("CUTAWAY_GPT2")
    if not spec:
        pytest.skip("CUTAWAY_GPT2 names no model; set it to a local directory of GPT-2 Small")
    published = json.loads((FOLDER / "gpt2_published.json").read_text(encoding="utf-8"))
    model = load_model(spec, dtype="float32")
    prompts = [p for verb in ("done", "lost") for p in read_prompts(FOLDER / f"numerals_{verb}.jsonl", "numerals")]
    rows = prepare(model, {"numerals": prompts}, joint=False)[0]["numerals"]
    bench = Bench(model, rows)
    circuit = [f"z.{layer}.{head}" for layer, head in published["circuit_heads"]]
    circuit += [f"mlp_out.{layer}" for layer in published["circuit_mlps"]]
    assert bench.score(circuit).value == pytest.approx(81.0, abs=0.5)
    for head, drop in published["single_head_drop_from_full_percent"].items():
        rest = [name for name in bench.nodes.names if name != f"z.{head}"]
        assert bench.score(rest).value - 100 == pytest.approx(drop, abs=1.0), head
    found = prune(Bench(model, rows.take(range(64))), one_iter=True)
    assert found.score.value > 80
