"""Every planted model takes the path of an ordinary one: tokenizer, save and load, padding, cache, batch."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutaway.model import Model
from cutaway.planted import (
    branches,
    cue_model,
    dilution,
    echo,
    induction,
    linear_direction,
    lookup,
    null_model,
    reasoner,
    receiver,
    sequence,
)

BUILD = {
    "reasoner": lambda: (
        reasoner().model,
        reasoner().prompt + reasoner().model.decode(reasoner().sample_trace(0)),
    ),
    "induction": lambda: (induction().model, "Copy ba du ki ba du ki"),
    "direction": lambda: (linear_direction().model, linear_direction().texts(1, concept=True)[0]),
    "null": lambda: (null_model().model, null_model().texts(1)[0]),
    "branches": lambda: (branches().model, branches().model.decode(branches().sample(0))),
    "cue": lambda: (cue_model(0.6, 0.5).model, cue_model(0.6, 0.5).prompt(0, 1)),
    "dilution": lambda: (dilution().model, dilution().requests(forbidden=True)[0]),
    "echo": lambda: (echo().model, echo().model.decode(range(4, 12))),
    "lookup": lambda: (lookup().model, lookup().model.decode(lookup().rows(1)[0].clean)),
    "sequence": lambda: (sequence().model, " December November October September"),
    "receiver": lambda: (receiver().model, receiver().model.decode(receiver().trace(0).ids)),
}
TURNS = ("planted-dilution", "planted-echo")
"""These mark whose turn it is."""


@functools.cache
def build(name: str) -> tuple[Model, str]:
    return BUILD[name]()


@pytest.fixture(params=BUILD)
def planted(request) -> tuple[Model, str]:
    return build(request.param)


def test_tokenizer_is_lossless_on_its_own_text(planted):
    model, text = planted
    ids = model.encode(text)
    assert model.decode(ids) == text
    assert "".join(model.decode([token]) for token in ids) == text
    assert len(ids) <= len(text) / 2
    assert model.vocab_size < 200


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@budget(max_examples=100, deadline=None)
def test_tokenizer_is_lossless_on_any_ascii_text(text):
    for name in ("reasoner", "induction"):
        model, _ = build(name)
        ids = model.encode(text)
        if set(ids).isdisjoint(model.special_ids):  # a text may spell out a special token
            assert "".join(model.decode([token]) for token in ids) == model.decode(ids) == text


def test_chat_template_leaves_the_prompt_as_it_is(planted):
    model, text = planted
    ids, inside = model.encode(text), model.chat_ids(text)
    if model.name.startswith(TURNS):
        assert any(inside[at : at + len(ids)] == ids for at in range(len(inside)))
    else:
        assert inside == ids


def test_save_and_load_keep_every_number(planted, tmp_path):
    model, text = planted
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = Model(AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path), "loaded")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.encode(text) == model.encode(text)
    assert loaded.eos_ids == model.eos_ids
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.logits(loaded.batch([text])), model.logits(model.batch([text])), atol=0, rtol=0)


def test_padding_and_batch_change_nothing(planted):
    model, text = planted
    ids = model.encode(text)
    rows = [ids, ids[: len(ids) // 2], ids[:3]]
    together = model.logits(model.batch(rows)).softmax(-1)
    for i, row in enumerate(rows):
        alone = model.logits(model.batch([row])).softmax(-1)[0]
        torch.testing.assert_close(together[i, : len(row)], alone, atol=1e-5, rtol=1e-4)


def test_cropped_cache_equals_a_fresh_prefill(planted):
    model, text = planted
    ids = torch.tensor([model.encode(text)])
    whole = model.logits(model.batch([text])).softmax(-1)
    with torch.no_grad():
        cache = model.hf(ids, use_cache=True).past_key_values
        cut = ids.shape[1] // 2
        cache.crop(cut - ids.shape[1])
        rest = model.hf(ids[:, cut:], past_key_values=cache, use_cache=True).logits.softmax(-1)
    torch.testing.assert_close(rest, whole[:, cut:], atol=1e-5, rtol=1e-4)


def test_building_is_deterministic_and_leaves_the_random_state_alone(planted, request):
    name = request.node.callspec.params["planted"]
    before = torch.random.get_rng_state()
    again = BUILD[name]()[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.fingerprint == planted[0].fingerprint
