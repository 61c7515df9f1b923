"""Ways to keep a refusal through harmless tuning: each against its formula, and all on a planted refusal."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.finetuning.ema_safety.calibration import small_material
from cutaway.finetuning.ema_safety.method import (
    Anchored,
    Grid,
    Material,
    Point,
    ProductAverage,
    Tradeoff,
    compare,
    fisher,
    written_refusals,
)
from cutaway.finetuning.exact import item_data
from cutaway.model import Model
from cutaway.planted.refusal import PlantedRefusal, planted_refusal
from cutaway.planted.small import small_llama
from cutaway.training import Average, LoraSpec, NextToken, TrainConfig, adapters, add_lora, collate, train

CONFIG = TrainConfig(rate=3e-3, batch=32, steps=50, schedule="constant", bucket=1, precision="float32")
GRID = Grid(rates=(1.0, 0.5, 0.25), etas=(0.9, 0.98), merges=(0.5,), anchors=(), elastic=(0.01,), mixed=(0.1,))


@pytest.fixture(scope="module")
def planted() -> PlantedRefusal:
    return planted_refusal(steps=120)


@pytest.fixture(scope="module")
def material(planted: PlantedRefusal) -> Material:
    return small_material(planted, n=300, test=60)


@pytest.fixture(scope="module")
def found(planted: PlantedRefusal, material: Material) -> Tradeoff:
    return compare(lambda repeat: planted.model.copy(), material, CONFIG, GRID, repeats=1)


def at(found: Tradeoff, way: str, knob: str) -> Point:
    return next(p for p in found.points if (p.way, p.knob) == (way, knob))


def test_plain_tuning_wrecks_the_refusal_and_cheaper_ways_keep_it(found: Tradeoff) -> None:
    plain = at(found, "plain", "1")
    assert found.base[0].refusal[1] >= 0.95
    assert plain.utility[1] >= 0.95
    assert found.base[0].refusal[1] - plain.refusal[1] >= 0.4
    for way, knob in (("plain", "0.25"), ("merging", "0.5"), ("mixed", "0.1")):
        point = at(found, way, knob)
        assert point.refusal[1] - plain.refusal[1] >= 0.4, way
    assert at(found, "merging", "0.5").distance == pytest.approx(plain.distance / 2, rel=1e-3)


def test_an_average_lies_nearer_the_start_the_longer_it_remembers(found: Tradeoff) -> None:
    plain, short, long = (at(found, *key) for key in (("plain", "1"), ("passive", "0.9"), ("passive", "0.98")))
    assert plain.distance > short.distance > long.distance
    assert plain.opening <= short.opening <= long.opening


def test_feedback_at_every_step_is_the_lower_rate(found: Tradeoff) -> None:
    assert at(found, "feedback", "0.5 every 1").opening == pytest.approx(at(found, "plain", "0.5").opening, abs=1e-2)
    assert at(found, "feedback", "0.5 every 10").opening != pytest.approx(at(found, "plain", "0.5").opening, abs=0.05)


def test_the_early_warning_falls_as_tuning_goes_on(found: Tradeoff) -> None:
    steps, losses, openings = zip(*found.drift[0], strict=True)
    assert steps[0] == 0
    assert steps[-1] == CONFIG.steps
    assert openings[0] > openings[-1] + 1.0
    assert losses[0] > losses[-1]


def test_the_table_holds_every_point_once(found: Tradeoff) -> None:
    frame = found.to_frame()
    assert len(frame) == 1 + 3 + 2 + 2 + 1 + 2
    assert not frame.duplicated(["way", "knob", "repeat"]).any()


def point(way: str, knob: str, utility: float, refusal: float, opening: float = -1.0) -> Point:
    return Point(way, knob, 0, (utility, 0.0), (refusal, 0.0), opening, 1.0)


def test_equal_utility_is_decided_on_validation_items() -> None:
    points = (
        point("plain", "1", 0.90, 0.1),
        point("plain", "0.5", 0.893, 0.6),
        point("plain", "0.1", 0.5, 1.0),
        point("passive", "0.9", 0.95, 0.7, -2.0),
        point("passive", "0.99", 0.9, 0.7, -1.0),
        point("merging", "0.5", 0.88, 0.9),
    )
    made = Tradeoff((point("before", "0", 0.0, 1.0),), points, (), (10, 10))
    assert [getattr(made.matched(0, way), "knob", None) for way in ("plain", "passive", "merging", "anchored")] == [
        *("0.5", "0.99", None, None)
    ]
    assert made.matched(0, "merging", margin=0.02) == points[-1]


def test_anchoring_adds_the_squared_distance(model: Model) -> None:
    model.hf.requires_grad_(True)
    own = dict(model.hf.named_parameters())
    start = {name: weight.detach() + 0.1 for name, weight in own.items()}
    data = item_data(some_items(), 64)
    batch = collate(data, [0, 1], model)
    plain, anchored = NextToken()(model, batch), Anchored(start, 0.3)(model, batch)
    away = sum(weight.numel() for weight in own.values()) * 0.01
    assert float((anchored.total - plain.total).detach()) == pytest.approx(0.3 * away * float(plain.weight), rel=1e-3)
    name = "model.layers.0.mlp.down_proj.weight"
    sides = [torch.autograd.grad(loss.total, own[name])[0] for loss in (anchored, plain)]
    assert torch.allclose(sides[0] - sides[1], torch.full_like(own[name], -0.1 * 2 * 0.3 * 2), atol=1e-4)


def test_elastic_weights_are_squared_gradients(model: Model) -> None:
    model.hf.requires_grad_(True)
    found = fisher(model, some_items())
    own = dict(model.hf.named_parameters())
    wanted = {name: torch.zeros_like(weight) for name, weight in own.items()}
    for ids, answer in (([5, 6, 7], 7), ([8, 9, 10], 10)):
        logp = model.hf(torch.tensor([ids])).logits[0, 1].log_softmax(-1)[answer]
        for name, gradient in zip(own, torch.autograd.grad(logp, list(own.values())), strict=True):
            wanted[name] += gradient.square()
    mean = torch.cat([each.flatten() for each in wanted.values()]).mean()
    assert all(torch.allclose(found[name], wanted[name] / mean, rtol=1e-3, atol=1e-5) for name in own)
    start = {name: weight.detach() + 0.1 for name, weight in own.items()}
    batch = collate(item_data(some_items(), 64), [0, 1], model)
    elastic, plain = Anchored(start, 0.3, found)(model, batch), NextToken()(model, batch)
    away = 0.01 * sum(weight.numel() for weight in own.values())
    assert float((elastic.total - plain.total).detach()) == pytest.approx(0.3 * away * float(plain.weight), rel=1e-3)


def some_items() -> tuple[object, ...]:
    from cutaway.finetuning.exact import Item

    return Item((5, 6), (7,)), Item((8, 9), (10,))


def test_averaging_factors_is_not_averaging_products(make_llama: Callable[..., Model]) -> None:
    spec = LoraSpec(("q_proj",), layers=(0,), rank=2, alpha=2.0)
    config = TrainConfig(rate=0.05, batch=2, steps=6, schedule="constant")
    model = add_lora(make_llama(), spec)
    products, kept = ProductAverage(0.5), []

    def keep(_: object) -> None:
        kept.extend(float(a.scale) * a.b.detach() @ a.a.detach() for a in adapters(model).values())

    probed = replace(config, probe_every=1)
    done = train(model, item_data(some_items(), 64), probed, averages=[Average(0.5)], probes={"p": products}, tick=keep)
    (path,) = adapters(model)
    closed = sum(0.5 * 0.5 ** (6 - t) * product for t, product in enumerate(kept, 1))
    assert torch.allclose(products.products[path], closed, atol=1e-6)
    shadow = done.averages["passive-0.5"]
    a, b = (next(v for k, v in shadow.items() if part in k) for part in ("lora_A", "lora_B"))
    (adapter,) = adapters(model).values()
    assert float((adapter.scale * b @ a - products.products[path]).abs().max()) > 1e-3


def test_averaged_products_stand_in_and_leave_no_trace(make_llama: Callable[..., Model]) -> None:
    model = add_lora(make_llama(), LoraSpec(("q_proj", "down_proj"), rank=2, alpha=2.0))
    products = ProductAverage(0.25)
    train(
        model,
        item_data(some_items(), 64),
        TrainConfig(rate=0.05, batch=2, steps=3, probe_every=1),
        probes={"p": products},
    )
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model.hf(ids).logits
        with products.applied(model):
            inside = model.hf(ids).logits
        plain = make_llama()
        for path, product in products.products.items():
            layer, module = path.split(".layers.")[-1].split(".", 1)
            plain.layout.blocks[int(layer)].get_submodule(module).weight.add_(product)
        assert torch.allclose(inside, plain.hf(ids).logits, atol=1e-5)
        assert not torch.allclose(inside, before, atol=1e-3)
        with pytest.raises(KeyError), products.applied(model):
            {}["gone"]
        assert torch.equal(model.hf(ids).logits, before)


def test_written_answers_are_judged_by_the_keyword_matcher() -> None:
    sorry = "I'm sorry, but I cannot."
    model = small_llama((" hello", " there", sorry), "speaker", d_model=16, n_layers=1, n_heads=2)
    with torch.no_grad():
        model.hf.get_output_embeddings().weight.zero_()
        model.hf.model.norm.weight.fill_(1.0)
    prompts = [model.encode(" hello"), model.encode(" there there")]

    def say(word: str) -> None:
        head = model.hf.get_output_embeddings().weight
        states = model.capture(prompts, "resid_post.0", "last")["resid_post.0"].detach()
        with torch.no_grad():
            head.zero_()
            head[model.encode(word)[0]] = 100 * states.sum((0, 1))

    say(sorry)
    assert written_refusals(model, prompts, tokens=1) == 1.0
    say(" hello")
    assert written_refusals(model, prompts, tokens=1) == 0.0


def test_ctrl_c_keeps_whole_repeats(planted: PlantedRefusal, material: Material) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    few = Grid(rates=(1.0,), etas=(0.5,), feedback=(), merges=(), anchors=())
    small = Material(
        material.tuning[:32], *(tuple(p[:5] for p in pair) for pair in (material.utility, material.refusal))
    )  # type: ignore[arg-type]
    config = replace(CONFIG, steps=2)
    found = compare(lambda repeat: planted.model.copy(), small, config, few, repeats=3, report=stop)
    assert not found.complete
    assert (len(found.base), len(found.points), len(found.drift)) == (1, 2, 1)


@pytest.mark.parametrize(
    ("grid", "match"),
    [
        ({"rates": (0.5, 1.0)}, "the first of them 1"),
        ({"rates": ()}, "the first of them 1"),
        ({"merges": (1.2,)}, "merges"),
        ({"anchors": (0.0,)}, "anchors"),
    ],
)
def test_bad_grids(grid: dict[str, tuple[float, ...]], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Grid(**grid)  # type: ignore[arg-type]


def test_bad_input(model: Model, planted: PlantedRefusal, material: Material) -> None:
    with pytest.raises(UsageError, match="eta"):
        ProductAverage(1.1)
    with pytest.raises(UsageError, match="no adapters"):
        ProductAverage(0.5)(model)
    with pytest.raises(UsageError, match="repeats=0"):
        compare(lambda repeat: planted.model.copy(), material, CONFIG, repeats=0)
    with pytest.raises(UsageError, match="eta=2"):
        compare(lambda repeat: planted.model.copy(), material, CONFIG, Grid(etas=(2.0,)), repeats=1)
    with pytest.raises(UsageError, match="need rows of the old behaviour"):
        compare(lambda repeat: planted.model.copy(), replace(material, old=()), CONFIG, Grid(mixed=(0.1,)), repeats=1)
