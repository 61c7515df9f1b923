"""The local engine against Hugging Face's own generation and plain forward passes, over families of models."""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance import CHECKS, Subject
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Add, AttentionMask, Edit, Mask, Model, Scale
from cutaway.planted import reasoner
from cutaway.sampling import LocalEngine, Request, Rollout, Settings, kv
from cutaway.sampling.batch import RowBatch
from cutaway.sampling.local import LONGEST_REST, _by_trunk
from cutaway.sampling.transform import token_probability

VOCAB = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "eos_token_id": 2}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED, sliding_window=5, layer_types=MIXED, query_pre_attn_scalar=8, final_logit_softcapping=8.0
    ),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=6),
    "gpt2": lambda: GPT2Config(**GPT2, pad_token_id=0, bos_token_id=1),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, hidden_act="gelu", tie_word_embeddings=False),
}
TEXT = tuple(random.Random(4).choices(range(3, VOCAB), k=20))
OTHER = (7, *TEXT[:3], 9, 8)
WARM = Settings(temperature=1.0, top_p=0.95, max_tokens=14)
GREEDY = Settings(temperature=0.0, max_tokens=24)


def build(family: str) -> Model:
    torch.manual_seed(11)
    hf = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
            elif "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.1)
    return Model(hf.requires_grad_(False), None, f"tiny-{family}")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return build(request.param)


@pytest.fixture
def llama() -> Model:
    return build("llama")


def rows_of(engine: LocalEngine, requests: Sequence[Request], edits: Sequence[Edit] = ()) -> list[dict[int, Rollout]]:
    """For each request, its rollouts by seed."""
    found: list[dict[int, Rollout]] = [{} for _ in requests]
    for index, rollout in engine.stream(requests, edits):
        assert rollout.seed not in found[index]
        found[index][rollout.seed] = rollout
    return found


def teacher(model: Model, prefix: Sequence[int], continuation: Sequence[int]) -> list[float]:
    """Log-probs of a continuation from one plain forward pass, without a cache."""
    with torch.no_grad():
        logits = model.logits(model.batch([[*prefix, *continuation]]))[0].float().log_softmax(-1)
    at = torch.arange(len(prefix) - 1, len(prefix) + len(continuation) - 1)
    return logits[at, torch.tensor(continuation)].tolist()


def naive_greedy(model: Model, prefix: Sequence[int], n: int, edits: Sequence[Edit] = ()) -> tuple[int, ...]:
    """Recompute the whole text for every token, without a cache."""
    text = list(prefix)
    with torch.no_grad(), model.edited(*edits):
        while len(text) < len(prefix) + n and (len(text) == len(prefix) or text[-1] not in model.eos_ids):
            text.append(int(model.logits(model.batch([text]))[0, -1].argmax()))
    return tuple(text[len(prefix) :])


def test_greedy_rollouts_are_those_of_generate(model):
    prefixes = [TEXT, TEXT[:1], TEXT[:9], OTHER, OTHER[:4]]
    found = rows_of(LocalEngine(model, 3), [Request(prefix, (0, 1), GREEDY) for prefix in prefixes])
    for prefix, rows in zip(prefixes, found, strict=True):
        ids = torch.tensor([prefix])
        out = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, use_cache=True
        )
        assert rows[0].ids == rows[1].ids == tuple(out[0, len(prefix) :].tolist())


def test_logprobs_from_crops_of_one_text_are_those_of_a_fresh_forward(model):
    """Rows of different crops, of different texts and of different ages stand in one batch."""
    requests = [Request(prefix, (1, 2, 3), WARM) for prefix in (TEXT, TEXT[:4], TEXT[:13], OTHER, OTHER[:2], TEXT[:4])]
    requests.append(Request(TEXT[:7], (9,), replace(WARM, max_tokens=70)))
    lengths = set()
    for request, rows in zip(requests, rows_of(LocalEngine(model, 4), requests), strict=True):
        assert set(rows) == set(request.seeds)
        for row in rows.values():
            assert row.logprobs == pytest.approx(teacher(model, request.prefix, row.ids), abs=1e-4)
            lengths.add(len(row.ids))
    assert len(lengths) > 1 or WARM.max_tokens not in lengths


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_same_seed_gives_the_same_row_in_any_batch(family):
    model = build(family)
    base = [Request(p, tuple(range(k, k + 5)), WARM) for k, p in enumerate((TEXT, TEXT[:6], OTHER, TEXT[:11]))]
    base.append(Request(TEXT[:11], (5, 6), replace(WARM, temperature=0.4)))
    base.append(Request(TEXT[:3], (5, 6), WARM, ban_first=17))
    expected = rows_of(LocalEngine(model, 1), base)
    for batch_size in (3, 64):
        order = list(range(len(base)))
        random.Random(batch_size).shuffle(order)
        shuffled = [replace(base[i], seeds=base[i].seeds[::-1]) for i in order]
        for i, rows in zip(order, rows_of(LocalEngine(model, batch_size), shuffled), strict=True):
            assert {s: row.ids for s, row in rows.items()} == {s: row.ids for s, row in expected[i].items()}
    alone = rows_of(LocalEngine(model), [replace(base[1], seeds=(4,))])
    assert alone[0][4].ids == expected[1][4].ids


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_lanes_change_no_row_and_no_cost(family, monkeypatch):
    monkeypatch.setattr("cutaway.sampling.local.FEWEST", 8)
    model = build(family)
    requests = [Request(p, tuple(range(8)), WARM) for p in (TEXT, TEXT[:6], OTHER, (*TEXT[:11], 9, 8), TEXT[:3])]
    one, three = LocalEngine(model, 7), LocalEngine(model, 3, lanes=3)
    expected, found = rows_of(one, requests), rows_of(three, requests)
    for mine, theirs in zip(found, expected, strict=True):
        assert {seed: row.ids for seed, row in mine.items()} == {seed: row.ids for seed, row in theirs.items()}
    assert three.cost == one.cost
    config = model.hf.config.get_text_config()
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_rows_that_attend_in_parts_are_the_same(family, monkeypatch):
    model = build(family)
    requests = [Request(p, tuple(range(6)), WARM) for p in (TEXT, TEXT[:6], OTHER, (*TEXT[:11], 9, 8), TEXT[:3])]
    expected = rows_of(LocalEngine(model), requests)
    monkeypatch.setattr(kv, "PART", 2)
    monkeypatch.setattr(kv, "WASTE", 1)
    most, parts = [], kv._parts
    monkeypatch.setattr(kv, "_parts", lambda *given: (most.append(len(found := parts(*given))), found)[1])
    for mine, theirs in zip(rows_of(LocalEngine(model, 9), requests), expected, strict=True):
        assert {seed: row.ids for seed, row in mine.items()} == {seed: row.ids for seed, row in theirs.items()}
    assert max(most) > 2


def test_lanes_of_their_own_threads_leave_the_callers_alone(llama, monkeypatch):
    monkeypatch.setattr("cutaway.sampling.local.FEWEST", 8)
    before, seen = torch.get_num_threads(), set()
    hook = llama.layout.blocks[0].register_forward_hook(lambda *_: seen.add(threading.get_ident()))
    requests = [Request(TEXT, tuple(range(24)), WARM)]
    rows_of(LocalEngine(llama, 8, lanes=3), requests)
    assert seen == {threading.get_ident()}  # a hook keeps notes of its forward: such a model decodes in one lane
    hook.remove()
    names = set()
    read = RowBatch.step
    monkeypatch.setattr(RowBatch, "step", lambda batch: (names.add(threading.get_ident()), read(batch))[1])
    rows_of(LocalEngine(llama, 8, lanes=3), requests)
    assert len(names) > 1
    assert torch.get_num_threads() == before


def test_one_long_text_is_prefilled_once(llama):
    engine = LocalEngine(llama, 4)
    rows_of(engine, [Request(TEXT[:k], (0, 1), WARM) for k in (3, len(TEXT), 8, 19)])
    assert engine.cost.prefilled == len(TEXT)
    assert engine.cost.reused == 2 * (3 + len(TEXT) + 8 + 19)
    rows_of(engine, [Request(TEXT[:5], (3,), WARM)])
    assert engine.cost.prefilled == len(TEXT)
    rows_of(engine, [Request((*TEXT, 5, 6), (3,), WARM)])
    assert engine.cost.prefilled == len(TEXT) + 2
    rows_of(engine, [Request((*TEXT[:10], 60, 6), (3,), WARM)])
    assert engine.cost.prefilled == len(TEXT) + 4


def test_a_trunk_grown_from_another_gives_the_same_rows(model):
    grown, fresh = LocalEngine(model), LocalEngine(model)
    rows_of(grown, [Request(TEXT[:9], (0,), WARM)])
    for prefix in (TEXT, (*TEXT[:12], 30, 31)):
        ask = [Request(prefix, (1, 2, 3), WARM)]
        for seed, row in rows_of(grown, ask)[0].items():
            assert row.ids == rows_of(fresh, ask)[0][seed].ids
            assert row.logprobs == pytest.approx(teacher(model, prefix, row.ids), abs=1e-4)


def test_unrelated_prompts_share_every_step(model):
    """Forwards that read one token a row are as many as the longest answer, not as the prompts' answers together."""
    prompts = [tuple(random.Random(k).choices(range(3, VOCAB), k=5 + k)) for k in range(9)]
    prompts += [(*prompts[3], 8, 9), prompts[0][:3]]
    widths: list[int] = []
    handle = model.layout.decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    settings = replace(GREEDY, max_tokens=6)
    engine = LocalEngine(model, 16)
    found = rows_of(engine, [Request(prompt, (0,), settings) for prompt in prompts])
    handle.remove()
    assert sum(width == 1 for width in widths) <= 6
    for prompt, rows in zip(prompts, found, strict=True):
        assert rows[0].ids == naive_greedy(model, prompt, 6)
    assert engine.cost.prefilled <= sum(map(len, prompts))


def test_a_prefix_far_from_the_text_or_filling_the_batch_has_a_text_of_its_own(llama):
    far = tuple(random.Random(5).choices(range(3, VOCAB), k=LONGEST_REST + 4))
    groups = _by_trunk([Request(TEXT, (0,), WARM), Request(far, (0,), WARM), Request(OTHER, (0,), WARM)], 4)
    assert groups == [(far, [(1, len(far)), (0, 0), (2, 0)])]
    many = Request(OTHER, tuple(range(4)), WARM)
    assert [members for _, members in _by_trunk([Request(TEXT, (0,), WARM), many], 4)] == [[(0, 20)], [(1, 6)]]
    assert len(_by_trunk([Request(far, (0,), WARM), Request(far[::-1], (0,), WARM)], 4)) == 2


def edits_of(model: Model) -> dict[str, list[Edit]]:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)) * 2
    return {
        "add everywhere": [Add("resid_post.1", vector)],
        "add at one place": [Add("resid_post.0", vector, positions=(4, 25))],
        "heads off": [Mask("z.1", index=(0, 2))],
        "keys and logits": [Scale("k.1", 0.3), Add("logits", torch.linspace(-2, 2, VOCAB), 0.5)],
        "two": [Scale("mlp_out.0", 0.0), Add("resid_mid.2", vector, 0.5)],
        "hidden text": [AttentionMask(layer="*", queries=slice(8, None), keys=slice(2, 5))],
        "hidden from some heads": [AttentionMask(layer=1, queries=None, keys=(0, 3, 26), heads=(1, 2))],
    }


PLACES = ["add everywhere", "add at one place", "heads off", "keys and logits", "two"]
HIDDEN = ["hidden text", "hidden from some heads"]


@pytest.mark.parametrize("which", [*PLACES, *HIDDEN])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_edits_while_sampling_equal_recomputation_from_nothing(family, which):
    model = build(family)
    edits, engine = edits_of(model)[which], LocalEngine(model, 4)
    plain = rows_of(engine, [Request(TEXT, (0,), GREEDY)])[0][0]
    prefixes = [TEXT, TEXT[:6], TEXT[:15], OTHER]
    found = rows_of(engine, [Request(prefix, (0,), GREEDY) for prefix in prefixes], edits)
    changed = False
    for prefix, rows in zip(prefixes, found, strict=True):
        assert rows[0].ids == naive_greedy(model, prefix, 24, edits)
        changed |= rows[0].ids != naive_greedy(model, prefix, 24)
    assert changed
    assert rows_of(engine, [Request(TEXT, (0,), GREEDY)])[0][0] == plain


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (Scale("z.1", 0.0, positions="last"), "give absolute positions"),
        (Scale("z.1", 0.0, positions=slice(-3, None)), "give absolute positions"),
        (Scale("logits", 0.5, positions=25), "single positions"),
        (AttentionMask(layer=1, keys=(-2,)), "give absolute positions"),
        (AttentionMask(layer=1, queries=slice(-2, None), keys=0), "give absolute positions"),
    ],
)
def test_edits_that_rows_of_one_text_cannot_share_are_refused(llama, edit, match):
    with pytest.raises(UsageError, match=match):
        list(LocalEngine(llama).stream([Request(TEXT, (0,), GREEDY)], [edit]))


def test_sliding_windows_and_edits_together():
    hide = AttentionMask(layer="*", queries=slice(6, None), keys=(1, 2))
    model, edits = build("gemma3"), [Scale("v.0", 0.3), Mask("z.2", index=1), hide]
    found = rows_of(LocalEngine(model), [Request(TEXT[:k], (0,), GREEDY) for k in (6, 20)], edits)
    assert [rows[0].ids for rows in found] == [naive_greedy(model, TEXT[:k], 24, edits) for k in (6, 20)]


def test_the_same_edit_works_twice_even_for_a_single_token(llama):
    edits, one = edits_of(llama)["heads off"], [Request(TEXT, (0,), Settings(0.0, max_tokens=1))]
    engine = LocalEngine(llama)
    assert rows_of(engine, one, edits) == rows_of(engine, one, edits)


def test_a_bad_request_is_refused_when_asked_not_when_read(llama):
    with pytest.raises(UsageError, match="prefix is empty"):
        LocalEngine(llama).stream([Request((), (0,), GREEDY)])


def test_weights_changed_in_place_are_not_answered_from_old_keys(llama):
    engine = LocalEngine(llama)
    rows_of(engine, [Request(TEXT, (0,), GREEDY)])
    with torch.no_grad():
        for parameter in llama.hf.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert rows_of(engine, [Request(TEXT, (0,), GREEDY)])[0][0].ids == naive_greedy(llama, TEXT, 24)


@pytest.mark.parametrize("settings", [WARM, Settings(0.6, 0.8), Settings(1.0, 1.0, 5), Settings(0.0)])
def test_token_probs_are_the_filtered_softmax_of_a_forward_pass(model, settings):
    continuation = tuple(np.random.default_rng(0).integers(3, VOCAB, 80).tolist())
    best = naive_greedy(model, TEXT, 6)
    engine = LocalEngine(model)
    for target in (continuation, best):
        with torch.no_grad():
            logits = model.logits(model.batch([[*TEXT, *target]]))[0, len(TEXT) - 1 : -1]
        expected = token_probability(logits, torch.tensor(target), settings)
        assert engine.token_probs(TEXT, target, settings) == pytest.approx(expected.tolist(), abs=1e-5)
    assert engine.token_probs(TEXT, (), settings) == []


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request((), (0,), WARM), "empty"),
        (Request((3, VOCAB), (0,), WARM), f"token id {VOCAB} lies outside"),
        (Request((3, -2, 5), (0,), WARM), "token id -2 lies outside"),
        (Request((3,), (0,), WARM, ban_first=VOCAB + 1), f"token id {VOCAB + 1} lies outside"),
        (Request(TEXT, (0,), replace(WARM, max_tokens=237)), "exceed the context"),
        (Request(TEXT, (0, -1), WARM), "seed=-1: must be 0 or larger"),
        (Request(TEXT, (2**128,), WARM), "must be 0 or larger, and below"),
    ],
)
def test_refused_requests(llama, request_, match):
    engine = LocalEngine(llama)
    with pytest.raises(UsageError, match=match):
        list(engine.stream([Request(TEXT, (0,), WARM), request_]))
    assert engine.cost.prefilled == 0


def test_refused_arguments(llama):
    with pytest.raises(UsageError, match="batch_size=0"):
        LocalEngine(llama, 0)
    with pytest.raises(UsageError, match="lanes=0"):
        LocalEngine(llama, lanes=0)
    with pytest.raises(UsageError, match="token id 61 lies outside"):
        LocalEngine(llama).token_probs(TEXT, (4, VOCAB), WARM)
    with pytest.raises(UsageError, match="empty"):
        LocalEngine(llama).token_probs((), (4,), WARM)
    with pytest.raises(UsageError, match="exceed the context"):
        LocalEngine(llama).token_probs(TEXT, TEXT * 12, WARM)
    best = naive_greedy(llama, TEXT, 1)[0]
    with pytest.raises(CutawayError, match="nothing else can follow"):
        list(LocalEngine(llama).stream([Request(TEXT, (0,), GREEDY, ban_first=best)]))


def test_the_last_position_of_the_context_is_used(llama):
    row = rows_of(LocalEngine(llama), [Request(TEXT, (3,), replace(WARM, max_tokens=236))])[0][3]
    assert row.logprobs == pytest.approx(teacher(llama, TEXT, row.ids), abs=1e-4)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    planted = reasoner("ffpwfsfa", p_one=(0.3, 0.7))
    model = planted.model
    check(
        Subject(
            LocalEngine(model, 4),
            planted.prompt_ids + planted.sample_trace(0)[:6],
            model.vocab_size,
            model.decode,
            model.eos_ids,
            lambda prefix, continuation: teacher(model, prefix, continuation),
            tolerance=1e-4,
        )
    )
