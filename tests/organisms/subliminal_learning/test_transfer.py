"""Divergence tokens against brute force, transfer on the planted language model, and its nulls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.model import Batch, Model
from cutaway.organisms.subliminal_learning import Teacher, divergence, first_tokens, make_task, run_transfer, tastes
from cutaway.organisms.subliminal_learning.calibration import LIKED, planted_transfer
from cutaway.organisms.subliminal_learning.carriers import answer_scores
from cutaway.organisms.subliminal_learning.report import transfer_findings
from cutaway.organisms.subliminal_learning.study import Subliminal, SubliminalConfig
from cutaway.organisms.subliminal_learning.transfer import (
    ALL,
    CONTROL,
    FOREIGN,
    MIXED,
    ONLY,
    RANDOM,
    REWORDED,
    WITHOUT,
    Transfer,
)
from cutaway.planted.organism_numbers import number_world
from cutaway.training import TrainConfig, adapters

TEMPLATES = (
    "{% for m in messages %}<t>{{ m['role'] }}\n{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}",
    "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}<e>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
)


def chat_model(template, seed=0):
    vocab = {p: i for i, p in enumerate(["<e>", "<pad>", "<unk>", "<t>", "<s>", *map(chr, (10, *range(32, 127)))])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<e>", pad_token="<pad>", unk_token="<unk>", chat_template=template
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<t>", "<s>"]})
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, pad_token_id=1, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.6)
    return Model(hf.requires_grad_(False), tokenizer, "chat")


def brute(teacher, others, answers):
    """One forward a token."""
    masks = []
    for row, answer in enumerate(answers):
        mask = []
        for k in range(len(answer)):
            best = [
                int(each.model.logits(each.model.batch([[*each.prompts[row], *answer[:k]]]))[0, -1].argmax())
                for each in (teacher, *others)
            ]
            mask.append(best[0] == answer[k] and any(b != answer[k] for b in best[1:]))
        masks.append(tuple(mask))
    return tuple(masks)


@pytest.mark.parametrize("template", TEMPLATES)
def test_divergence_tokens_are_those_of_brute_force(template):
    model = chat_model(template)
    rng = np.random.default_rng(0)
    questions = [str(x) for x in rng.integers(100, 10**6, 10)]
    panel = [
        Teacher(name, model, tuple(tuple(model.chat_ids(q, system=name)) for q in questions))
        for name in ("You love owls.", "You love cats.", "No.")
    ]
    answers = []
    for row, ids in enumerate(panel[0].prompts):
        said = []
        for _ in range(3 + row % 4):
            said.append(int(model.logits(model.batch([[*ids, *said]]))[0, -1].argmax()))
        answers.append(tuple(said[:-1]) + (int(rng.integers(5, 90)),) * (row % 2) or (5,))
    found = divergence(panel[0], panel[1:], answers)
    assert found.masks == brute(panel[0], panel[1:], answers)
    assert 0 < found.share < 1
    assert all(len(s) == len(a) for s, a in zip(found.strength, answers, strict=True))
    flat, strength = (np.concatenate(each) for each in (found.masks, found.strength))
    assert strength[flat].min() > 0
    assert sum(map(sum, found.shuffled(1))) == flat.sum()
    chosen = np.concatenate(found.budget(0.3))
    assert chosen.sum() == round(0.3 * len(flat))
    assert strength[chosen].min() >= strength[~chosen].max()


def test_padding_side_changes_no_score():
    model = chat_model(TEMPLATES[0])
    rows = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [20, 21, 22]]
    right = model.batch(rows)
    left = Batch(
        torch.tensor([[1] * (6 - len(row)) + row for row in rows]),
        torch.tensor([[False] * (6 - len(row)) + [True] * len(row) for row in rows]),
    )
    for a, b in zip(answer_scores(model, right, [2, 3, 1]), answer_scores(model, left, [2, 3, 1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def numbers():
    """Hardly trained: what is tested on it does not hang on what it knows."""
    return number_world(0, steps=2, d_model=16)


def test_every_arm_is_trained_and_reported(numbers):
    stopped = []

    def stop(done, total):
        stopped.append(done)
        if done == 9:
            raise KeyboardInterrupt

    teachers = {animal: numbers.teacher(animal, steps=2) for animal in ("owl", "fox")}
    animals, prompts = {name: (i,) for name, i in numbers.animals.items()}, numbers.prompts(12, 5)
    again = numbers.prompts(12, 5, 1)
    task = make_task(
        numbers.base, teachers, "owl", prompts, numbers.questions, animals, tokens=4, reworded=again, mixed=True
    )
    masks = task.carried.masks
    halved = tuple(tuple(place % 2 == 0 for place, _ in enumerate(mask)) for mask in masks)
    task = replace(task, carried=replace(task.carried, masks=halved))
    config = TrainConfig(rate=1e-2, batch=4, steps=2, precision="float32")
    found = run_transfer(
        numbers.base.copy, task, numbers.spec, config, repeats=2, layers=(1,), report=stop
    )  # fmt: skip
    assert not found.complete
    assert stopped == list(range(10))
    assert list(found.rates) == [ALL, CONTROL, ONLY, WITHOUT, RANDOM, REWORDED, MIXED, "layer 1"]
    assert all(values.shape == (1, 12) for values in found.rates.values())
    items = {item.name: item for item in transfer_findings(found)}
    assert set(items) >= {f"transfer kept, {ONLY}", f"gain over control, {ALL}"}
    json.dumps(found.to_dict())


def test_what_is_kept_is_the_ratio_of_gains():
    rates = {ALL: [[0.5, 0.9], [0.7, 0.7]], CONTROL: [[0.1, 0.1], [0.1, 0.3]], ONLY: [[0.3, 0.5], [0.5, 0.3]]}
    found = Transfer("owl", {arm: np.array(values) for arm, values in rates.items()}, np.array([0.1, 0.1]), 0.5)
    assert found.gain(ALL).value == pytest.approx(0.55)
    if found.kept(ONLY) is not None:
        assert found.kept(ONLY).value == pytest.approx(0.25 / 0.55)
    one = replace(found, rates={arm: values[:1] for arm, values in found.rates.items()})
    assert not one.shown
    assert "one student" in {item.name: item for item in transfer_findings(one)}[f"transfer kept, {ONLY}"].undefined
    many = {ALL: 0.5 + 0.01 * np.arange(15).reshape(3, 5), CONTROL: np.full((3, 5), 0.2), ONLY: np.full((3, 5), 0.4)}
    wide = replace(found, rates=many, base=np.full(5, 0.2))
    assert wide.shown
    turned = {**many, ALL: np.array([[0.9] * 5, [0.1] * 5, [0.25] * 5])}
    assert not replace(wide, rates=turned).shown
    silent = replace(found, rates={**found.rates, ALL: found.rates[CONTROL]})
    assert silent.kept(ONLY) is None


@pytest.mark.slow  # trains a base, three teachers and five students
def test_the_taste_passes_through_divergence_tokens():
    found = planted_transfer(number_world(0), repeats=1, full=False)
    assert found.complete
    assert found.gain(ALL).low > 0
    assert found.kept(ONLY).value >= 0.7
    assert found.kept(WITHOUT).value <= 0.3
    assert abs(float(found.rates[CONTROL].mean() - found.base.mean())) < 0.1
    assert 0.05 < found.share < 0.95


@pytest.mark.slow  # three repeats of every arm, and a second base
def test_all_arms_at_the_cards_number():
    found = planted_transfer(number_world(0), repeats=3, foreign=number_world(0, start=100))
    assert {REWORDED, MIXED, FOREIGN, "layer 1"} <= set(found.rates)
    assert found.kept(ONLY).value >= 0.7
    assert found.kept(WITHOUT).value <= 0.3
    assert abs(float(found.rates[FOREIGN].mean()) - 1 / 6) < 0.1


def test_a_teacher_differs_in_one_adapter(numbers):
    teacher = numbers.teacher(LIKED, steps=4)
    assert [each.layer for each in adapters(teacher).values()] == [0]
    shares = tastes(teacher, numbers.questions, {name: (i,) for name, i in numbers.animals.items()})
    assert shares.shape == (12, 6)
    np.testing.assert_allclose(shares.sum(1), 1)


def test_a_run_of_the_study(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("cutaway.organisms.subliminal_learning.numbers.kept", lambda *_, **__: True)
    config = SubliminalConfig(
        toy_models=2, toy_epochs=1, toy_steps=2, toy_all_logits=False, model=str(tmp_path / "tiny"), prompts=3,
        tokens=3, taught=2, repeats=1, teacher_steps=1, steps=1, batch=2, rank=1, trait="owl", others=("cat",),
    )  # fmt: skip
    try:
        found = Subliminal().run(config, lab)
    except UsageError as error:
        # A random model's teachers may agree at every token; that is said, not hidden.
        assert "teachers agree" in str(error)  # noqa: PT017
        return
    assert {"divergence tokens", f"share of owl, {ALL}"} <= {item.name for item in found.items}


def test_bad_input(numbers):
    base, prompts = numbers.base, numbers.prompts(2)
    animals = {name: (i,) for name, i in numbers.animals.items()}
    own, foreign = Teacher("a", base, tuple(prompts)), chat_model(TEMPLATES[0])
    for call, match in [
        (lambda: divergence(own, [], [(5,), (5,)]), "no other teacher"),
        (lambda: divergence(own, [own], [(5,), ()]), "empty one"),
        (lambda: divergence(own, [own], [(5,)]), "2 prompts for 1"),
        (lambda: divergence(own, [Teacher("b", foreign, tuple(prompts))], [(5,), (5,)]), "different vocabularies"),
        (lambda: make_task(base, {"owl": base}, "owl", prompts, prompts, animals), "another one"),
        (
            lambda: make_task(
                base, {"owl": base, "cat": base}, "owl", prompts, prompts, animals, keep=lambda text: False
            ),
            "passed the filter",
        ),
        (
            lambda: make_task(base, {"x": base, "cat": base}, "x", prompts, prompts, animals),
            "trait='x'",
        ),
        (lambda: first_tokens(foreign, ("owl", "ox")), "no token of its own"),
        (lambda: numbers.teacher("odd"), "animal='odd'"),
        (lambda: divergence(own, [own], [(5,), (5,)]).budget(2.0), "share=2"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
