"""The classifier's gradient against autograd and addition, its own site, labels, files, and the planted clouds."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Add, Model
from cutaway.model.edits import GradientStep
from cutaway.sampling import Settings
from cutaway.steering import draw_answers
from cutaway.steering.k_steering import Classifier, Recipe, fit_classifier, fit_vectors, load_classifier
from cutaway.steering.k_steering.classifier import signs

LABELS = ("a", "b", "c")


def drawn(n: int = 240, d: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(n) % 4
    means = torch.randn(4, d, generator=generator)
    x = 2 + means[kind] + 0.5 * torch.randn(n, d, generator=generator)
    return x, kind[:, None] == torch.arange(3)


def fitted(hidden: int = 16, site: str = "resid_post.1") -> Classifier:
    return fit_classifier(*drawn(), LABELS, site, Recipe(hidden, epochs=10, rate=1e-2))


def test_it_learns_and_is_reproducible() -> None:
    x, y = drawn()
    mine, again = fitted(), fitted()
    assert all(torch.equal(a, b) for a, b in zip(mine.weights, again.weights, strict=True))
    assert float(((mine.probabilities(x) > 0.5) == y).float().mean()) > 0.98
    assert float(mine.stream) == pytest.approx(float(x.norm(dim=-1).median()))


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize(("targets", "avoids"), [(("a",), ()), (("a", "c"), ("b",)), (("b",), ("a", "c"))])
def test_the_push_is_the_gradient_of_the_wish(hidden: int, targets: tuple[str, ...], avoids: tuple[str, ...]) -> None:
    classifier, x = fitted(hidden), drawn()[0][:20]
    (edit,) = classifier.edits(targets, avoids, 0.7, unit=False)
    moved = edit.stepped(x) if isinstance(edit, GradientStep) else x + edit.scale * edit.vector
    for row, after in zip(x, moved, strict=True):
        at = row.clone().requires_grad_()
        logits = classifier.logits(at)
        wish = sum(logits[LABELS.index(name)] for name in targets) / len(targets)
        if avoids:
            wish = wish - sum(logits[LABELS.index(name)] for name in avoids) / len(avoids)
        (push,) = torch.autograd.grad(wish, at)
        torch.testing.assert_close(after, row + 0.7 * push, atol=1e-5, rtol=1e-5)


def test_linear_classifier_is_vector_addition() -> None:
    classifier = fitted(0)
    rows = classifier.weights[0]
    (edit,) = classifier.edits(["a", "b"], ["c"], 3.0, unit=False)
    assert isinstance(edit, Add)
    torch.testing.assert_close(edit.scale * edit.vector, 3 * ((rows[0] + rows[1]) / 2 - rows[2]), atol=1e-6, rtol=1e-6)
    (unit,) = classifier.edits(["a"], strength=0.1)
    assert float((unit.scale * unit.vector).norm()) == pytest.approx(0.1 * classifier.stream, rel=1e-5)


def test_unit_steps_push_equally_far_at_every_row() -> None:
    classifier, x = fitted(), drawn()[0]
    (edit,) = classifier.edits(["a"], strength=0.1)
    lengths = (edit.stepped(x) - x).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1 * classifier.stream), rtol=1e-3, atol=1e-4)


def test_until_stops_at_the_probability() -> None:
    classifier, x = fitted(), drawn()[0]
    (edit,) = classifier.edits(["b"], strength=0.01, steps=400, until=0.9)
    after = classifier.probabilities(edit.stepped(x))[:, 1]
    before = classifier.probabilities(x)[:, 1]
    assert float((after >= 0.9 - 1e-4).float().mean()) > 0.95
    assert torch.equal(edit.stepped(x)[before >= 0.91], x[before >= 0.91])


def test_it_acts_at_the_site_it_was_read_from(model: Model, texts: list[list[int]]) -> None:
    """What the edit meets is what `capture` shows at the classifier's site; no other site can be named."""
    classifier, batch = fitted(site="resid_post.1"), model.batch(texts)
    before = model.capture(batch, "resid_post.1")["resid_post.1"]
    edits = classifier.edits(["a"], ["b"], 0.3, steps=2)
    assert {edit.site for edit in edits} == {classifier.site}
    with model.edited(*edits):
        after = model.capture(batch, "resid_post.1")["resid_post.1"]
    assert isinstance(edits[0], GradientStep)
    torch.testing.assert_close(after, edits[0].stepped(before), atol=1e-6, rtol=1e-6)
    with pytest.raises(TypeError):
        classifier.edits(["a"], site="resid_post.0")  # type: ignore[call-arg]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_company_do_not_change_steered_logits(model: Model, texts: list[list[int]], side: str) -> None:
    edits = fitted().edits(["a"], strength=0.3, steps=2)
    width = max(map(len, texts)) + 3
    with torch.no_grad(), model.edited(*edits):
        for text in texts[:5]:
            alone = model.logits(model.batch([text]))[0]
            pad = [0] * (width - len(text))
            rows = [pad + text, pad + text] if side == "left" else [text + pad, text + pad]
            mask = torch.tensor([[int(i < len(text)) for i in range(width)]] * 2)
            mask = mask.flip(1) if side == "left" else mask
            kwargs = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if side == "left" else {}
            padded = model.hf(input_ids=torch.tensor(rows), attention_mask=mask, **kwargs).logits
            torch.testing.assert_close(padded[mask.bool()][: len(text)], alone, atol=1e-4, rtol=1e-4)
        together = model.batch(texts)
        torch.testing.assert_close(
            model.logits(together)[0, : len(texts[0])], model.logits(model.batch(texts[:1]))[0], atol=1e-4, rtol=1e-4
        )


def test_no_strength_no_edit_and_hooks_go_after_an_exception(llama: Model, texts: list[list[int]]) -> None:
    settings, classifier = Settings(0.0, 1.0, max_tokens=5), fitted()
    assert classifier.edits(["a"], strength=0.0) == ()
    plain = draw_answers(llama, texts[:3], settings)
    assert draw_answers(llama, texts[:3], settings, edits=classifier.edits(["a"], strength=0.0)) == plain
    with pytest.raises(ZeroDivisionError), llama.edited(*classifier.edits(["a"], strength=1.0)):
        raise ZeroDivisionError
    assert draw_answers(llama, texts[:3], settings) == plain
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.hf.modules())


def test_baseline_vectors_by_hand() -> None:
    x, y = drawn()
    vectors = fit_vectors(x, y, LABELS, "resid_post.1")
    rows = [x[y[:, k]].mean(0) - x[~y.any(1)].mean(0) for k in range(3)]
    torch.testing.assert_close(vectors.values, torch.stack(rows), atol=1e-5, rtol=1e-5)
    wanted = rows[0] + rows[1] - rows[2]
    torch.testing.assert_close(vectors.direction(["a", "b"], ["c"]), wanted / wanted.norm(), atol=1e-5, rtol=1e-5)
    (edit,) = vectors.edits(["a"], strength=0.2)
    assert float((edit.vector * edit.scale).norm()) == pytest.approx(0.2 * vectors.stream, rel=1e-5)
    assert vectors.edits(["a"], strength=0.0) == ()


def test_signs() -> None:
    for first, second in product("abc", "abc"):
        if first != second:
            weight = signs(LABELS, [first], [second])
            assert float(weight.sum()) == 0
            assert float(weight[LABELS.index(first)]) == 1
    assert signs(LABELS, ["a", "b"]).tolist() == [0.5, 0.5, 0.0]


def test_files(tmp_path: Path) -> None:
    classifier = fitted()
    classifier.save(tmp_path / "c.safetensors")
    back = load_classifier(tmp_path / "c.safetensors")
    assert (back.labels, back.site, back.stream) == (classifier.labels, classifier.site, classifier.stream)
    assert back.edits(["a"], strength=0.2) == classifier.edits(["a"], strength=0.2)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad.safetensors", "missing.safetensors"):
        with pytest.raises(CutawayError, match="holds no classifier"):
            load_classifier(tmp_path / name)


def test_bad_input(llama: Model) -> None:
    classifier = fitted()
    cases: list[tuple[dict[str, object], str]] = [
        ({"targets": ["d"]}, "no label 'd'"),
        ({"targets": []}, "no target given; choose one of: a, b, c"),
        ({"targets": ["a"], "avoids": ["a"]}, "is a target and to be avoided"),
        ({"targets": ["a", "a"]}, "each label once"),
        ({"targets": ["a"], "until": 1.0}, "until=1.0"),
        ({"targets": ["a"], "steps": 0}, "steps=0"),
    ]
    for given, message in cases:
        with pytest.raises(UsageError, match=message):
            classifier.edits(**given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one vector"):
        fitted(0).edits(["a"], until=0.9)
    x, y = drawn()
    with pytest.raises(UsageError, match="2 labels for 3 columns"):
        fit_classifier(x, y, ("a", "b"), "resid_post.1")
    with pytest.raises(UsageError, match="label 'a' is on 0 of 240"):
        fit_classifier(x, y & torch.tensor([False, True, True]), LABELS, "resid_post.1")
    with pytest.raises(UsageError, match="the same"):
        fit_classifier(torch.ones(240, 4), y, LABELS, "resid_post.1")
    far = fitted(site="resid_post.7")
    with pytest.raises(UsageError, match=r"layer '7' must be 0\.\.2"), llama.edited(*far.edits(["a"], strength=1.0)):
        pass
    vectors = fit_vectors(torch.cat([x, x]), torch.cat([y, y]), LABELS, "resid_post.1")
    object.__setattr__(vectors, "values", torch.zeros_like(vectors.values))
    with pytest.raises(UsageError, match="cancel"):
        vectors.direction(["a"])


def test_scores_do_not_depend_on_company() -> None:
    classifier, x = fitted(), drawn()[0]
    whole = classifier.logits(x)
    np.testing.assert_allclose(torch.stack([classifier.logits(row) for row in x]), whole, atol=1e-5)
