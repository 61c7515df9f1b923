"""The loop: resume, edits, averages, checkpoints, probes, twins, and what it refuses."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shared_steps
import torch
from safetensors import safe_open
from training_data import rows_of, tiny, tiny_gpt2

from cutaway.errors import CutawayError, UsageError
from cutaway.model import EditError, Model, Project
from cutaway.training import (
    Average,
    LoraSpec,
    NextToken,
    RunSpec,
    Step,
    TrainConfig,
    Trained,
    adapters,
    add_lora,
    checkpoints,
    differences,
    load_checkpoint,
    swapped,
    train,
    twins,
    unfreeze,
)
from cutaway.training.checkpoint import read

DATA = rows_of(12)
# Compared with closed forms to 1e-5 and 1e-6, so in the precision that allows it, also where bf16 would be chosen.
EXACT = TrainConfig(precision="float32")
CONFIG = replace(EXACT, rate=0.02, batch=4, steps=8, weight_decay=0.01, warm_up=2, schedule="cosine")


def full(seed: int = 0, **options: Any) -> Model:
    model = tiny(seed, **options)
    unfreeze(model)
    return model


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.hf.named_parameters()}


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_at(step: int) -> Any:
    def tick(done: Step) -> None:
        if done.step == step:
            raise KeyboardInterrupt

    return tick


def plain(done: Trained) -> list[tuple[Any, ...]]:
    return [(s.step, s.loss, s.gradient, s.rate, s.tokens) for s in done.history]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("build", ["full", "lora", "dropout"])
def test_a_stopped_run_goes_on_bit_for_bit(build: str, optimizer: str, tmp_path: Path) -> None:
    averages = [Average(0.9), Average(0.5, "feedback", start=1)]

    def fresh() -> Model:
        if build == "lora":
            return add_lora(tiny(), LoraSpec(rank=1))
        model = tiny_gpt2() if build == "dropout" else tiny()  # GPT-2 draws random numbers as it trains
        unfreeze(model)
        return model

    config = replace(CONFIG, optimizer=optimizer)
    given: Any = {"averages": averages, "probes": {"norm": norm}}
    whole, stopped, again = fresh(), fresh(), fresh()
    straight = train(whole, DATA, config, **given)
    first = train(stopped, DATA, config, folder=tmp_path, tick=stop_at(3), **given)
    assert (first.complete, len(first.history)) == (False, 3)
    torch.manual_seed(99)  # what was drawn in between does not matter
    resumed = train(again, DATA, config, folder=tmp_path, resume=True, **given)
    assert resumed.complete
    assert plain(resumed) == plain(straight)
    assert equal(state(again), state(whole))
    assert resumed.probed == straight.probed
    assert all(equal(resumed.averages[name], straight.averages[name]) for name in straight.averages)
    once_more = train(fresh(), DATA, config, folder=tmp_path, resume=True, **given)
    assert plain(once_more) == plain(straight)


def norm(model: Model) -> dict[str, float]:
    assert not model.hf.training
    torch.rand(3)
    return {"first": float(next(iter(model.hf.parameters())).detach().norm())}


def test_a_state_of_other_weights_data_or_settings_is_refused(tmp_path: Path) -> None:
    train(full(), DATA, CONFIG, folder=tmp_path, tick=stop_at(2))
    other = full(1)
    before = state(other)
    with pytest.raises(CutawayError, match="belongs to base weights"):
        train(other, DATA, CONFIG, folder=tmp_path, resume=True)
    assert equal(state(other), before)
    for change, match in (
        ({"config": replace(CONFIG, rate=0.01)}, "config.rate was 0.02, now 0.01"),
        ({"data": rows_of(12, seed=5)}, "data was"),
        ({"averages": [Average(0.5)]}, "averages was"),
    ):
        with pytest.raises(UsageError, match=match):
            train(full(), **{"data": DATA, "config": CONFIG, "folder": tmp_path, "resume": True, **change})
    file = tmp_path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CutawayError, match="no checkpoint that can be read"):
        train(full(), DATA, CONFIG, folder=tmp_path, resume=True)


def test_dense_checkpoints_hold_the_adapter_and_where_it_came_from(tmp_path: Path) -> None:
    model = add_lora(tiny(), LoraSpec(layers=(1,)))
    seen = {}

    def tick(step: Step) -> None:
        seen[step.step] = {name: a.b.detach().clone() for name, a in adapters(model).items()}

    done = train(model, DATA, replace(CONFIG, weights_every=2), folder=tmp_path, tick=tick)
    assert list(done.checkpoints) == list(checkpoints(tmp_path)) == [2, 4, 6, 8]
    again = add_lora(tiny(), LoraSpec(layers=(1,), seed=7))
    assert load_checkpoint(again, done.checkpoints[4]) == 4
    assert equal({name: a.b for name, a in adapters(again).items()}, seen[4])
    with safe_open(done.checkpoints[2], framework="pt") as file:
        assert len(list(file.keys())) == 2
        assert done.provenance.base in file.metadata()["cutaway"]
    with pytest.raises(CutawayError, match="belongs to base weights"):
        load_checkpoint(add_lora(tiny(1), LoraSpec(layers=(1,))), done.checkpoints[4])
    with pytest.raises(CutawayError, match="does not fit"):
        load_checkpoint(add_lora(tiny(), LoraSpec(layers=(0,))), done.checkpoints[4])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_edits_are_in_training_and_off_for_probes_and_after(precision: str) -> None:
    direction = torch.zeros(16)
    direction[3] = 1.0
    edit = Project("resid_post.0", direction)
    model = full()
    inside: list[float] = []

    def along(model: Model) -> dict[str, float]:
        with torch.no_grad():
            seen = model.capture([[5, 9, 14]], "resid_post.0", special=True)["resid_post.0"]
        return {"size": float(seen[..., 3].abs().max())}

    class Watching(NextToken):
        def __call__(self, model: Model, batch: Any) -> Any:
            inside.append(along(model)["size"])
            return super().__call__(model, batch)

    config = replace(CONFIG, precision=precision)
    done = train(model, DATA, config, objective=Watching(), edits=[edit], probes={"along": along})
    assert max(inside) < 1e-6
    assert all(each.values["along.size"] > 1e-3 for each in done.probed)
    assert [each.step for each in done.probed] == [0, 8]
    kept = train(full(), DATA, CONFIG, edits=[edit], keep_edits=True, probes={"along": along})
    assert all(each.values["along.size"] < 1e-6 for each in kept.probed)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    assert done.provenance.edits[0]["edit"] == "Project"
    with pytest.raises(UsageError, match="directions have 4 entries"):
        train(full(), DATA, CONFIG, edits=[Project("resid_post.0", torch.ones(4))])
    broken = full()
    with pytest.raises(EditError, match="changed nothing"):
        train(broken, DATA, CONFIG, edits=[Project("resid_post.0", direction, positions=23)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.hf.modules())


def test_gradients_pass_the_projection_as_by_hand() -> None:
    """One step of SGD under an edit equals the gradient through ``h (I - q q^T)`` written into the forward."""
    draw = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(16, generator=draw), dim=0)
    config = replace(EXACT, rate=0.5, optimizer="sgd", steps=1, batch=12, schedule="constant", clip=None)
    ours, theirs = full(), full()
    train(ours, DATA, config, edits=[Project("resid_post.0", q)])
    handle = theirs.layout.blocks[0].register_forward_hook(lambda _m, _i, out: out - (out @ q)[..., None] * q)
    train(theirs, DATA, config)
    handle.remove()
    for name, weight in state(ours).items():
        assert torch.allclose(weight, state(theirs)[name], atol=1e-5), name


def test_averages_are_the_closed_form() -> None:
    model, kept = full(tied=True), []
    kept.append({k: v.double() for k, v in state(model).items()})
    passive = [Average(eta) for eta in (0.0, 0.6, 1.0)] + [Average(0.5, every=2), Average(0.5, start=3)]
    done = train(
        model,
        DATA,
        CONFIG,
        averages=passive,
        tick=lambda _: kept.append({k: v.double() for k, v in state(model).items()}),
    )
    steps = len(kept) - 1
    assert "lm_head.weight" not in kept[0]  # tied: one tensor, averaged once
    for name in kept[0]:
        closed = 0.6**steps * kept[0][name]
        closed = closed + sum(0.4 * 0.6 ** (steps - t) * kept[t][name] for t in range(1, steps + 1))
        late = kept[3][name]
        for t in range(4, steps + 1):
            late = 0.5 * late + 0.5 * kept[t][name]
        sparse = kept[0][name]
        for t in range(2, steps + 1, 2):
            sparse = 0.5 * sparse + 0.5 * kept[t][name]
        for key, value in (("passive-0.6", closed), ("passive-0.5-from-3", late), ("passive-0.5-every-2", sparse)):
            assert torch.allclose(done.averages[key][name].double(), value, atol=1e-6), key
        assert torch.equal(done.averages["passive-0"][name], state(model)[name])
        assert torch.equal(done.averages["passive-1"][name], kept[0][name].float())
    own = state(model)
    with swapped(model, done.averages["passive-1"]):
        assert equal(state(model), {k: v.float() for k, v in kept[0].items()})
    assert equal(state(model), own)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.2), ("adamw", 0.01)])
def test_feedback_at_every_step_is_a_lower_rate_and_at_every_third_is_not(optimizer: str, rate: float) -> None:
    config = replace(
        EXACT, rate=rate, optimizer=optimizer, steps=9, batch=4, schedule="constant", clip=None, weight_decay=0.1
    )
    slow = full()
    train(slow, DATA, replace(config, rate=0.75 * rate))
    apart = {}
    for every in (1, 3):
        back = full()
        train(back, DATA, config, averages=[Average(0.25, "feedback", every=every)])
        apart[every] = max(float((state(back)[name] - weight).abs().max()) for name, weight in state(slow).items())
    assert apart[1] < 1e-4
    assert apart[3] > 1e-3


def test_unfreezing_by_layer_and_module() -> None:
    model = tiny()
    names = unfreeze(model, layers=[1])
    assert names
    assert all(name.startswith("model.layers.1.") for name in names)
    before = state(model)
    train(model, DATA, CONFIG)
    changed = {name for name, weight in state(model).items() if not torch.equal(weight, before[name])}
    assert changed == set(names)
    assert unfreeze(model, ["q_proj"], [0]) == ("model.layers.0.self_attn.q_proj.weight",)
    with pytest.raises(UsageError, match=r"layer 5: the model has 0..1"):
        unfreeze(model, layers=[5])


def test_ctrl_c_keeps_what_was_learnt(tmp_path: Path) -> None:
    model = full()
    done = train(model, DATA, CONFIG, tick=stop_at(2))
    assert not done.complete
    assert "2 steps" in repr(done)
    assert "ended early" in repr(done)
    assert not model.hf.training
    assert list(done.to_frame()["step"]) == [1, 2]
    assert done.history[0].left > 0
    done.save(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text().count("gradient") == 2


def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end(tmp_path: Path) -> None:
    class Interrupting(Average):
        def update(self, shadow: Any, weights: Any, step: int) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            super().update(shadow, weights, step)

    first = train(full(), DATA, CONFIG, averages=[Interrupting(0.5, "feedback")], folder=tmp_path)
    assert (first.complete, len(first.history)) == (False, 3)
    resumed, straight = full(), full()
    train(resumed, DATA, CONFIG, averages=[Average(0.5, "feedback")], folder=tmp_path, resume=True)
    train(straight, DATA, CONFIG, averages=[Average(0.5, "feedback")])
    assert equal(state(resumed), state(straight))


def test_a_folder_in_use_is_not_written_over(tmp_path: Path) -> None:
    train(full(), DATA, CONFIG, folder=tmp_path, tick=stop_at(2))
    with pytest.raises(UsageError, match="holds a run already"):
        train(full(), DATA, CONFIG, folder=tmp_path)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # its new name is too new
def test_checkpointed_activations_change_nothing_under_an_edit() -> None:
    edit = Project("resid_post.0", torch.eye(16)[3])
    models = [full(), full()]
    models[1].hf.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in models[1].hf.modules())
    for model in models:
        train(model, DATA, CONFIG, edits=[edit])
    for name, weight in state(models[0]).items():
        assert torch.allclose(state(models[1])[name], weight, atol=1e-6), name


def test_bf16_products_leave_the_weights_in_fp32() -> None:
    model, exact = full(), full()
    half = train(model, DATA, replace(CONFIG, precision="bfloat16")).history
    whole = train(exact, DATA, replace(CONFIG, precision="float32")).history
    assert all(weight.dtype == torch.float32 for weight in model.hf.parameters())
    assert [step.loss for step in half] == pytest.approx([step.loss for step in whole], rel=0.02)
    assert [step.loss for step in half] != [step.loss for step in whole]


def test_adapters_on_a_bf16_model_train_in_fp32() -> None:
    thin = tiny()
    thin.hf.bfloat16()
    base = thin.fingerprint
    model = add_lora(thin, LoraSpec(rank=1))
    done = train(model, DATA, replace(CONFIG, precision="float32"))
    assert done.provenance.base == base
    assert all(a.a.dtype == a.b.dtype == torch.float32 for a in adapters(model).values())
    assert done.history[-1].loss < done.history[0].loss


def test_training_leaves_the_global_random_state() -> None:
    model = full()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train(model, DATA, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_twins_differ_in_one_field_only(tmp_path: Path) -> None:
    spec = RunSpec(DATA, CONFIG, lora=LoraSpec(rank=1))
    other = replace(spec, config=replace(CONFIG, rate=0.01))
    pair = twins(tiny, spec, other, folder=tmp_path)
    assert (pair.field, pair.values) == ("config.rate", (0.02, 0.01))
    assert [s.tokens for s in pair.a.history] == [s.tokens for s in pair.b.history]
    assert pair.a.history[0].loss == pair.b.history[0].loss
    assert pair.a.history[-1].loss != pair.b.history[-1].loss
    assert (tmp_path / "a" / "state.safetensors").exists()
    assert list(differences(spec, replace(spec, lora=None))) == ["lora"]
    assert list(differences(spec, replace(spec, lora=LoraSpec(rank=2)))) == ["lora.rank"]
    with pytest.raises(UsageError, match="exactly one field, these in 0: none"):
        twins(tiny, spec, spec)
    both = replace(other, lora=LoraSpec(rank=2))
    with pytest.raises(UsageError, match=r"these in 2: config.rate, lora.rank"):
        twins(tiny, spec, both)
    one = tiny()
    with pytest.raises(UsageError, match="same weights twice"):
        twins(lambda: one, spec, other)
    seeds = iter((1, 2))
    with pytest.raises(UsageError, match="different weights"):
        twins(lambda: tiny(next(seeds)), spec, other)
    with pytest.raises(UsageError, match="bucket=1"):
        twins(tiny, spec, replace(spec, data=rows_of(12, seed=3)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"batch": 0}, "batch=0"),
        ({"steps": 0}, "steps=0"),
        ({"clip": 0.0}, "clip"),
        ({"schedule": "linaer"}, "did you mean 'linear'"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"precision": "int4"}, "choose one of|did you mean"),
        ({"weights_every": -1}, "weights_every=-1"),
    ],
)
def test_bad_settings(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        TrainConfig(**change)


def test_bad_runs() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        train(tiny(), DATA, CONFIG)
    with pytest.raises(UsageError, match="need a folder"):
        train(full(), DATA, replace(CONFIG, weights_every=2))
    small = full()
    small.n_ctx = 8
    with pytest.raises(UsageError, match="a row of 12 tokens"):
        train(small, DATA, CONFIG)
    half = full()
    half.hf.bfloat16()
    with pytest.raises(UsageError, match="bfloat16, in which small updates are lost"):
        train(half, DATA, CONFIG)
    with pytest.raises(UsageError, match="one with feedback"):
        train(full(), DATA, CONFIG, averages=[Average(0.1, "feedback"), Average(0.2, "feedback")])
    with pytest.raises(UsageError, match=r"eta=1\.5"):
        Average(1.5)
    broken = full()
    with torch.no_grad():
        broken.hf.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CutawayError, match="step 0: the loss is nan"):
        train(broken, DATA, CONFIG)
    narrow = full()
    narrow.vocab_size = 47
    with pytest.raises(UsageError, match="token id 47 is outside"):
        train(narrow, rows_of(60), TrainConfig(steps=20))


@pytest.mark.slow  # two processes, each with imports of its own
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    alone = shared_steps.run(str(tmp_path / "alone"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, shared_steps.__file__, str(tmp_path / "both"), str(tmp_path / "losses.pt")]
    started = [
        subprocess.Popen(command, env={**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [each.wait(timeout=120) for each in started] == [0, 0]
    both = torch.load(tmp_path / "losses.pt", weights_only=True)
    assert both.tolist() == pytest.approx(alone, rel=1e-5)
    ends = [read(checkpoints(tmp_path / name)[3])[0] for name in ("alone", "both")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-5) for name in ends[0])


def test_a_launch_needs_a_micro_batch_for_every_process() -> None:
    with pytest.raises(UsageError, match="accumulate=1: 2 processes"):
        train(full(), DATA, TrainConfig(steps=1), accelerator=SimpleNamespace(num_processes=2))  # type: ignore[arg-type]
