"""Rows equal one forward a text, batches and padding change nothing, mixing loses nothing, harvests resume."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cutaway.features.harvest as harvesting
from cutaway.errors import CutawayError, UsageError
from cutaway.features.corpus import open_corpus
from cutaway.features.evaluate import evaluate
from cutaway.features.harvest import (
    Job,
    Rows,
    contexts,
    harvest,
    mixed,
    open_harvest,
    provenance_of,
    stream,
    train_all,
)
from cutaway.features.train import TrainConfig
from cutaway.model import Model

TEXTS = ["the cat sat on a mat", "a", "dogs bark at the moon every night, and cats do not", "x" * 70]
CORPUS = open_corpus(TEXTS)
SITES = ["resid_post.1", "mlp_out.0", "z.1"]


def collected(rows: Iterator[Rows]) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Values by (document, place in it)."""
    found = {}
    for part in rows:
        for row, (context, position) in enumerate(zip(part.context.tolist(), part.position.tolist(), strict=True)):
            window = part.contexts[context]
            begin = len(window.ids) - len(window.ends) + sum(end == -1 for end in window.ends)
            key = (window.document, window.start + position - begin)
            assert key not in found
            found[key] = {site: values[row] for site, values in part.values.items()}
    return found


def test_rows_equal_one_forward_for_each_text(started: Model) -> None:
    found = collected(stream(started, CORPUS, SITES, length=32, batch=3))
    begin = started.encode("", special=True)
    assert begin == [started.tokenizer.eos_token_id]
    expected = 0
    for number, text in enumerate(TEXTS):
        ids = started.encode(text)
        for start in range(0, len(ids), 31):
            window = begin + ids[start : start + 31]
            alone = started.capture([window], SITES, special=True)
            for at in range(1, len(window)):
                expected += 1
                for site in SITES:
                    mine = found[number, start + at - 1][site]
                    assert torch.allclose(mine, alone[site][0, at].flatten(), atol=1e-5)
    assert len(found) == expected == sum(len(started.encode(text)) for text in TEXTS)


def test_batch_size_changes_neither_rows_nor_their_order(model: Model) -> None:
    def listed(batch: int) -> Rows:
        parts = list(stream(model, CORPUS, "resid_post.2", length=16, batch=batch))
        offsets = torch.tensor([0, *[len(part.contexts) for part in parts]]).cumsum(0)
        windows = sum((part.contexts for part in parts), ())
        context = torch.cat([part.context + at for part, at in zip(parts, offsets[:-1], strict=True)])
        values = torch.cat([part.values["resid_post.2"] for part in parts])
        return Rows({"resid_post.2": values}, context, torch.cat([part.position for part in parts]), windows)

    one = listed(1)
    for batch in (3, 64):
        other = listed(batch)
        assert other.contexts == one.contexts
        assert torch.equal(other.context, one.context)
        assert torch.allclose(other.values["resid_post.2"], one.values["resid_post.2"], atol=1e-5)
    assert one.tokens.tolist() == [one.contexts[c].ids[p] for c, p in zip(one.context, one.position, strict=True)]
    assert set(one.documents.tolist()) == {0, 1, 2, 3}


def test_special_tokens_and_padding_are_left_out(started: Model) -> None:
    corpus = open_corpus(["ab<eos>cd<pad>", "long enough to pad the other one"])
    ids = torch.cat([rows.tokens for rows in stream(started, corpus, "embed")])
    assert not set(ids.tolist()) & started.special_ids
    assert len(ids) == 4 + len(started.encode("long enough to pad the other one"))
    kept = torch.cat([rows.tokens for rows in stream(started, corpus, "embed", special=True)])
    assert len(kept) == len(ids) + 2 + 2  # one start token a text, and the two in the first


def test_windows_know_where_they_stand_in_the_text(started: Model) -> None:
    windows = list(contexts(started, CORPUS, 16))
    for window in windows:
        text = TEXTS[window.document]
        assert window.ends[0] == -1
        ends = window.ends[1:]
        first = (
            0
            if window.start == 0
            else next(
                other.ends[-1]
                for other in windows
                if (other.document, other.start) == (window.document, window.start - 15)
            )
        )
        assert text[first : ends[-1]] == started.decode(window.ids[1:])


def test_tokens_are_counted_exactly(model: Model) -> None:
    for tokens in (1, 19, 20, 21, 100):
        rows = list(stream(model, CORPUS, "embed", tokens=tokens, batch=1))
        assert sum(map(len, rows)) == tokens
    with pytest.raises(UsageError, match="length=199: 1 to 128"):
        next(stream(model, CORPUS, "embed", length=199))
    with pytest.raises(UsageError, match="no row at each token"):
        next(stream(model, CORPUS, "pattern.0"))
    with pytest.raises(UsageError, match="batch=0"):
        next(stream(model, CORPUS, "embed", batch=0))


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(2, 11), st.integers(0, 9))
def test_mixing_loses_nothing_and_keeps_sites_in_step(sizes: list[int], capacity: int, seed: int) -> None:
    numbers = torch.arange(sum(sizes)).float()[:, None]
    chunks = [{"a": part, "b": part * 10} for part in numbers.split(sizes)]
    out = list(mixed(chunks, capacity, seed))
    a, b = (torch.cat([part[name] for part in out]) for name in "ab")
    assert torch.equal(a * 10, b)
    assert torch.equal(a.sort(0).values, numbers)
    assert max(len(part["a"]) for part in out) <= capacity


def test_mixing_pulls_neighbours_apart() -> None:
    numbers = torch.arange(4000.0)[:, None]
    out = torch.cat([part["a"] for part in mixed([{"a": part} for part in numbers.split(50)], 1000)])
    assert (out.diff(dim=0).abs() > 5).float().mean() > 0.95
    with pytest.raises(UsageError, match="capacity=1"):
        next(mixed([{"a": numbers}], 1))
    with pytest.raises(UsageError, match="every chunk needs the same"):
        list(mixed([{"a": numbers}, {"b": numbers}], 10))


def test_one_stream_feeds_many_trainers(model: Model) -> None:
    config = TrainConfig(n_latents=20, k=2, batch=16, warm_up=1, rate=1e-2)
    jobs = {
        "first": Job("resid_post.0", config),
        "wide": Job("resid_post.2", TrainConfig(n_latents=30, k=3, batch=40, warm_up=1)),
        "short": Job("resid_post.2", TrainConfig(n_latents=20, k=2, batch=16, steps=2)),
    }
    sites = ["resid_post.0", "resid_post.2"]
    about = {site: provenance_of(model, CORPUS, site) for site in sites}
    made = train_all(mixed(stream(model, CORPUS, sites), 64), jobs, provenance=about)
    total = sum(len(model.encode(text)) for text in TEXTS)
    assert [len(made[name].history) for name in jobs] == [total // 16, total // 40, 2]
    alone = train_all(mixed(stream(model, CORPUS, sites), 64), {"first": jobs["first"]}, provenance=about)
    assert torch.equal(made["first"].dictionary.w_dec, alone["first"].dictionary.w_dec)
    kept = made["wide"].dictionary.provenance
    assert (kept.fingerprint, kept.data, kept.site) == (model.fingerprint, CORPUS.digest, "resid_post.2")
    assert (kept.tokens, kept.settings["k"]) == (total // 40 * 40, 3)
    with pytest.raises(UsageError, match="'big': fewer rows than one batch of 5000"):
        train_all(stream(model, CORPUS, sites), {"big": Job("resid_post.0", TrainConfig(batch=5000))})


def test_a_transcoder_is_trained_from_the_stream_and_evaluated(model: Model) -> None:
    read, written = "resid_mid.1", "mlp_out.1"
    corpus = open_corpus([f"{a} {b}" for a in TEXTS for b in TEXTS])
    config = TrainConfig(n_latents=48, k=8, batch=64, rate=1e-2, warm_up=1, steps=150, skip=True)
    rows = [part for part in stream(model, corpus, [read, written]) for _ in range(20)]
    about = {read: provenance_of(model, corpus, read)}
    made = train_all(mixed(rows, 2048), {"t": Job(read, config, written)}, provenance=about)["t"].dictionary
    assert (made.provenance.site, made.provenance.target) == (read, written)
    found = evaluate(model, made, corpus, length=64)
    assert found.site == written
    assert found.score.fvu.value < 0.3
    assert found.score.fvu.value < max(each.fvu.value for each in found.baselines)
    assert found.score.ce_score is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_harvest_holds_what_the_stream_gave(dtype: Any, model: Model, tmp_path: Path) -> None:
    kept = harvest(model, CORPUS, SITES, tmp_path, length=16, batch=2, dtype=dtype)
    assert kept.complete
    assert kept.tokens == sum(len(model.encode(text)) for text in TEXTS)
    again, direct = collected(open_harvest(tmp_path).rows()), collected(stream(model, CORPUS, SITES, length=16))
    assert again.keys() == direct.keys()
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for key, values in direct.items():
        for site in SITES:
            assert torch.allclose(again[key][site], values[site], atol=tolerance, rtol=tolerance)
    assert kept.provenance("z.1").data == CORPUS.digest
    with pytest.raises(UsageError, match=r"did you mean .resid_post\.1."):
        next(kept.rows(["resid_post.2"]))


def test_a_stopped_harvest_goes_on_where_it_was(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvesting, "GROUP", 3)
    whole = harvest(model, CORPUS, "resid_post.1", tmp_path / "whole", length=16)
    calls: list[int] = []

    def stop(rows: int) -> None:
        calls.append(rows)
        raise KeyboardInterrupt

    part = harvest(model, CORPUS, "resid_post.1", tmp_path / "part", length=16, tick=stop)
    assert (len(part.about["shards"]), part.complete) == (1, False)
    (tmp_path / "part" / "00001.draft").write_bytes(b"torn")
    some = harvest(model, CORPUS, "resid_post.1", tmp_path / "part", length=16, tokens=part.tokens + 1)
    assert len(some.about["shards"]) == 2
    done = harvest(model, CORPUS, "resid_post.1", tmp_path / "part", length=16)
    assert done.about == whole.about
    for a, b in zip(done.rows(), whole.rows(), strict=True):
        assert torch.equal(a.values["resid_post.1"], b.values["resid_post.1"])
        assert a.contexts == b.contexts
    with pytest.raises(UsageError, match="holds a harvest with length=16, not 32"):
        harvest(model, CORPUS, "resid_post.1", tmp_path / "part", length=32)
    with pytest.raises(CutawayError, match="holds no harvest"):
        open_harvest(tmp_path / "none")
    (tmp_path / "part" / "00000.safetensors").write_bytes(b"torn")
    with pytest.raises(CutawayError, match="is damaged"):
        next(open_harvest(tmp_path / "part").rows())


def test_values_that_cannot_be_kept_are_named(model: Model, tmp_path: Path) -> None:
    loud = model.copy()
    with torch.no_grad():
        loud.hf.get_input_embeddings().weight.mul_(1e6)
    with pytest.raises(CutawayError, match=r"resid_post\.0: activations contain NaN or infinity as torch\.float16"):
        harvest(loud, CORPUS, "resid_post.0", tmp_path / "half", length=16, dtype="float16")
    assert not list((tmp_path / "half").glob("*.safetensors"))
    assert harvest(loud, CORPUS, "resid_post.0", tmp_path / "whole", length=16).complete
    with torch.no_grad():
        loud.hf.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(CutawayError, match="NaN or infinity"):
        harvest(loud, CORPUS, "resid_post.0", tmp_path / "nan", length=16)
