"""Pooled and per-token activations: padding, batching and the folder change nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model
from cutaway.planted import null_model
from cutaway.probes import activations, running
from cutaway.probes.pooled import buckets, token_rows

SITES = ["resid_post.0", "resid_post.1", "z.0"]
POOLS = ["mean", "last", "max", "tokens"]


@pytest.fixture(scope="module")
def model() -> Model:
    return null_model(seed=3).model


@pytest.fixture(scope="module")
def rows(model: Model) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 2, 3, 9, 40, 5, 5, 17, 2, 28]
    return [torch.randint(3, model.vocab_size, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("tokens", [40, 100, 8192])
def test_equal_to_one_at_a_time_and_to_plain_pools(model, rows, tokens):
    found = activations(model, rows, SITES, POOLS, tokens=tokens)
    for i, ids in enumerate(rows):
        with torch.no_grad():
            alone = model.capture([ids], SITES, special=True)
        for site in SITES:
            values = alone[site][0].flatten(1)
            torch.testing.assert_close(found.tokens(site)[i], values, atol=1e-5, rtol=0)
            for pool, expected in (("mean", values.mean(0)), ("last", values[-1]), ("max", values.amax(0))):
                torch.testing.assert_close(found[site, pool][i], expected, atol=1e-5, rtol=0)
    assert found.lengths == tuple(map(len, rows))
    assert found.computed == len(rows)


def test_special_tokens_stay_out_unless_asked_for(model):
    eos = next(iter(model.special_ids))
    ids = [5, 6, eos]
    without, within = (activations(model, [ids], SITES[0], "tokens", special=flag) for flag in (False, True))
    assert [len(each.tokens(SITES[0])[0]) for each in (without, within)] == [2, 3]
    last = activations(model, [ids], SITES[0], "last")[SITES[0], "last"]
    torch.testing.assert_close(last[0], without.tokens(SITES[0])[0][-1])


def test_the_folder_returns_the_same_and_reads_only_what_is_new(model, rows, tmp_path):
    first = activations(model, rows[:6], SITES, POOLS, folder=tmp_path, tokens=64)
    again = activations(model, rows[::-1], SITES, POOLS, folder=tmp_path)
    fresh = activations(model, rows[::-1], SITES, POOLS)
    assert (first.computed, again.computed) == (6, 4)
    for site in SITES:
        for pool in POOLS:
            torch.testing.assert_close(again[site, pool], fresh[site, pool], atol=1e-5, rtol=0)
    assert activations(model, rows, SITES[1], "max", folder=tmp_path).computed == 0
    assert activations(model, rows, "resid_mid.0", "max", folder=tmp_path).computed == len(rows)
    assert activations(model, rows, SITES[0], folder=tmp_path, special=True).computed == len(rows)
    assert activations(null_model(seed=4).model, rows, SITES[0], folder=tmp_path).computed == len(rows)


def test_a_stopped_run_goes_on(model, rows, tmp_path):
    def stop(done: int, total: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activations(model, rows, SITES[0], folder=tmp_path, tokens=50, report=stop)
    (tmp_path / model.fingerprint[:32] / "half.part").write_bytes(b"killed while writing")
    went_on = activations(model, rows, SITES[0], folder=tmp_path)
    assert 0 < went_on.computed < len(rows)
    whole = activations(model, rows, SITES[0])
    torch.testing.assert_close(went_on[SITES[0], "mean"], whole[SITES[0], "mean"], atol=1e-5, rtol=0)


def test_a_spoiled_shard_is_named(model, rows, tmp_path):
    activations(model, rows, SITES[0], folder=tmp_path)
    shard = next(tmp_path.glob("*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(CutawayError, match=shard.name):
        activations(model, rows, SITES[0], folder=tmp_path)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 400))
@budget(max_examples=60, deadline=None)
def test_buckets_hold_every_row_once_within_their_size(lengths, tokens):
    rows = {str(i): [0] * n for i, n in enumerate(lengths)}
    batches = list(buckets(rows, tokens))
    assert sorted(key for batch in batches for key in batch) == sorted(rows)
    for batch in batches:
        width = max(len(rows[key]) for key in batch)
        assert len(batch) == 1 or len(batch) * width <= tokens


def test_running_pools_are_the_pools_of_every_prefix():
    values = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    for pool, function in (("mean", lambda v: v.mean(0)), ("max", lambda v: v.amax(0)), ("last", lambda v: v[-1])):
        expected = torch.stack([function(values[: n + 1]) for n in range(7)])
        torch.testing.assert_close(running(values, pool), expected, atol=1e-6, rtol=0)
    with pytest.raises(UsageError, match="mean, last or max"):
        running(values, "tokens")


def test_texts_chats_and_ids(model):
    text = "a b"
    as_chat = token_rows(model, [text], chat=True)
    assert as_chat == token_rows(model, [[{"role": "user", "content": text}]])
    found = activations(model, ["abc" * 30, "a"], SITES[0], longest=4)
    assert (found.lengths[0], found.cut) == (4, 1)


def test_bad_input(model):
    for texts, given_, match in [
        ([], {}, "at least one"),
        ("alone", {}, "a list"),
        ([""], {}, "empty"),
        ([[next(iter(model.special_ids))]], {}, "special"),
        (["a"], {"pooling": "median"}, "median"),
        (["a"], {"pooling": []}, "no pooling"),
        (["a"], {"longest": 0}, "longest=0"),
        ([[10**6]], {}, "vocabulary"),
    ]:
        with pytest.raises((UsageError, TypeError), match=match):
            activations(model, texts, SITES[0], **given_)
    with pytest.raises(UsageError, match="pattern"):
        activations(model, ["a"], "pattern.0")
    with pytest.raises(UsageError, match="resid_post"):
        activations(model, ["a"], "resid_pots.0")
    with pytest.raises(KeyError, match="not asked"):
        activations(model, ["a"], SITES[0])[SITES[0], "max"]
