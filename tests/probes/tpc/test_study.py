"""The study's wiring on a tiny model, its prompts, and its calibration."""

import json

import pytest

from cutaway.errors import UsageError
from cutaway.planted import null_model
from cutaway.probes.tpc.calibration import all_rates, claims_on_null, reads_model
from cutaway.probes.tpc.data import default_prompts, labels, read_prompts
from cutaway.probes.tpc.study import Tpc, TpcConfig
from cutaway.study import Lab

SMALL = {
    "site": "resid_post.1", "chat": False, "order": 3, "rank": 2, "epochs": 2, "runs": 1, "rates": (1e-3,),
    "decays": (0.1,), "model": "tiny", "longest": 64,
}  # fmt: skip


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    lab._models["tiny", "float32"] = null_model(seed=1).model
    return lab


def test_a_run_says_everything_and_keeps_activations(lab):
    study = Tpc()
    found = study.run(TpcConfig(**SMALL), lab)
    names = {item.name for item in found.items}
    assert found.complete
    assert {"F1, order 1", "F1 gained by order 3 over order 1", "AUROC, words alone"} <= names
    assert found.inputs == study.inputs(TpcConfig(**SMALL), lab)
    assert json.loads(found.artifacts["comparison.json"])["recipe"]["rank"] == 2
    assert "charts.json" in found.artifacts
    shards = list((lab.home / "activations").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    study.run(TpcConfig(**SMALL), lab)
    assert {path: path.stat().st_mtime_ns for path in (lab.home / "activations").rglob("*.safetensors")} == before


def test_ctrl_c_while_reading_is_a_partial_result(lab):
    def stop(progress):
        raise KeyboardInterrupt

    lab.progress = stop
    found = Tpc().run(TpcConfig(**SMALL), lab)
    assert not found.complete
    assert found.items[0].undefined


def test_the_prompts_are_split_by_group():
    prompts = read_prompts(default_prompts(), 0.4)
    groups = [{each.group for each in part} for part in (prompts.train, prompts.validation)]
    assert not groups[0] & groups[1]
    assert labels(prompts.test).mean() == pytest.approx(0.5)
    assert sum(not each.unsafe for each in prompts.validation) >= 99
    assert read_prompts(default_prompts(), 0.4, seed=1) != prompts


def test_bad_prompts(tmp_path):
    path = tmp_path / "p.csv"
    with pytest.raises(UsageError, match="no such file"):
        read_prompts(path)
    for text, match in [
        ("part,group,label\n", "no rows"),
        ("part,group,label\ntest,a,safe\n", "'prompt' is missing"),
        ("part,group,label,prompt\nelse,a,safe,hi\n", "line 2"),
        ("part,group,label,prompt\ntest,a,safe,hi\n", "training part has not both classes"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=match):
            read_prompts(path)


def test_pairs_are_read_through_a_model_and_coins_are_not():
    assert reads_model(1)
    assert not claims_on_null(1, (1200, 400, 800))


@pytest.mark.slow  # eight trials take some minutes
def test_calibration_passes():
    assert all(rate.passed for rate in all_rates(8))
