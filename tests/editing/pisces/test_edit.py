"""The edit against naive recomputation, checkpoints that hold it, signs against a loop, and refusals."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cutaway.editing import Feature, applied, load_edit, rewritten, written
from cutaway.editing.facts import single_tokens
from cutaway.editing.pisces import (
    candidates,
    make_edit,
    random_control,
    shuffled_control,
    signs,
    word_dictionary,
    word_features,
)
from cutaway.errors import CutawayError, UsageError
from cutaway.features import Provenance, SparseDictionary
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer
from cutaway.planted.concepts import tiny_llama

WORDS = tuple(f" w{i}" for i in range(40))


def gpt2() -> Model:
    tokenizer = word_tokenizer(WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=16))
    return Model(hf.eval(), tokenizer, "tiny-gpt2")


@pytest.fixture(params=["llama", "gpt2"])
def model(request) -> Model:
    return gpt2() if request.param == "gpt2" else tiny_llama(WORDS, "tiny", d_model=16)


def dictionary(layer: int = 1, n: int = 24, *, activation: str = "relu", width: int = 16) -> SparseDictionary:
    made = SparseDictionary(width, n, activation, k=4, provenance=Provenance(site=f"mlp_out.{layer}"), seed=3)
    with torch.no_grad():
        made.b_dec.copy_(0.01 * torch.arange(width))
        made.b_enc.copy_(0.02 * torch.arange(n))
    return made


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_the_edit_equals_coding_every_row_with_its_error_put_back(model, activation):
    own = dictionary(activation=activation)
    features = [Feature(1, 3, True), Feature(1, 7, False)]
    flips = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    edit = make_edit(model, {1: own}, features, tau=0.6, mu=2.0, signs={1: flips})
    rows = written(model, 1)
    reads = rows @ own.w_enc[[3, 7]].T
    strength = reads.abs().amax(0)
    wanted = rows.clone()
    for i in range(len(rows)):
        code = own.encode(rows[i : i + 1]).dense()
        error = rows[i] - _decoded(own, code)
        for place, (index, side) in enumerate(((3, -1.0), (7, 1.0))):
            if reads[i, place].abs() > 0.6 * strength[place]:
                code[0, index] = 2.0 * strength.max() * side * flips[i]
        wanted[i] = _decoded(own, code) + error
    after = rows.clone()
    after[edit.rows[0].neurons] = edit.rows[0].after
    assert torch.allclose(after, wanted, atol=1e-5)
    assert 0 < len(edit) < 64
    assert edit.multiplications < edit.reference


def _decoded(own: SparseDictionary, code: torch.Tensor) -> torch.Tensor:
    return (code @ own.atoms + own.b_dec)[0]


@torch.no_grad()
def test_an_orthonormal_dictionary_changes_one_coefficient_by_the_predicted_length(model):
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    own = SparseDictionary(16, 16, "relu", provenance=Provenance(site="mlp_out.1"))
    own.w_enc.copy_(basis)
    own.w_dec.copy_(basis)
    edit = make_edit(model, {1: own}, [Feature(1, 5, True)], tau=0.5, mu=3.0)
    reads = written(model, 1) @ basis[5]
    chosen = (reads.abs() > 0.5 * reads.abs().max()).nonzero()[:, 0]
    assert torch.equal(edit.rows[0].neurons, chosen)
    change = edit.rows[0].after - edit.rows[0].before
    predicted = -3.0 * reads.abs().max() - reads[chosen].relu()
    assert torch.allclose(change @ basis.T, predicted[:, None] * torch.eye(16)[5], atol=1e-5)


@torch.no_grad()
def test_an_unchanged_coefficient_or_no_neuron_leaves_the_weights_bit_identical(model):
    own = SparseDictionary(16, 16, "relu", subtract_bias=False, provenance=Provenance(site="mlp_out.1"))
    own.w_enc.copy_(torch.eye(16))
    own.w_dec.copy_(torch.eye(16))
    rows = written(model, 1)
    rows[0, 2] = rows[:, 2].abs().max() * 2
    before = model.fingerprint
    same = make_edit(model, {1: own}, [Feature(1, 2, False)], tau=0.9, mu=1.0)
    assert same.rows[0].neurons.tolist() == [0]
    assert torch.equal(same.rows[0].after, same.rows[0].before)
    none = make_edit(model, {1: own}, [Feature(1, 2, True)], tau=1.5, mu=4.0)
    assert len(none) == 0
    assert rewritten(model, none).fingerprint == rewritten(model, same).fingerprint == before


def test_the_block_restores_bit_for_bit_after_an_error(model):
    before = model.fingerprint
    edit = make_edit(model, {1: dictionary()}, [Feature(1, 3, True)], tau=0.5, mu=5.0)

    def failing() -> None:
        with applied(model, edit):
            assert model.fingerprint != before
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        failing()
    assert model.fingerprint == before


@torch.no_grad()
def test_a_saved_checkpoint_gives_the_same_logits_and_the_edit_file_undoes_it(model, tmp_path):
    edit = make_edit(model, {1: dictionary()}, [Feature(1, 3, True)], tau=0.5, mu=5.0)
    before = model.fingerprint
    changed = rewritten(model, edit)
    assert model.fingerprint == before
    batch = model.batch([[3, 4, 5, 6]])
    with applied(model, edit):
        inside = model.logits(batch)
    changed.hf.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert torch.equal(loaded(**batch.forward_kwargs()).logits, inside)
    assert torch.equal(changed.logits(batch), inside)
    edit.save(tmp_path / "edit.safetensors")
    again = load_edit(tmp_path / "edit.safetensors")
    assert (again.tau, again.mu, again.features, again.changed) == (edit.tau, edit.mu, edit.features, edit.changed)
    assert rewritten(changed, again, undo=True).fingerprint == before
    with pytest.raises(CutawayError, match="other rows"):
        rewritten(changed, again)
    with pytest.raises(CutawayError, match="no edit"):
        load_edit(tmp_path / "model" / "config.json")


@torch.no_grad()
def test_signs_equal_a_loop(model):
    rows = [[3, 9, 4, 9], [5, 9], [6, 7, 8], [9, 10, 11, 9, 12]]
    found = signs(model, rows, (0, 1), (9, 11), batch=2)
    for layer in (0, 1):
        total = torch.zeros(64)
        for row in rows:
            values = model.capture([row], f"neurons.{layer}", special=True)[f"neurons.{layer}"][0]
            for at in range(len(row) - 1):
                if row[at + 1] in (9, 11):
                    total += values[at].sign()
        assert torch.equal(found[layer], torch.where(total >= 0, 1.0, -1.0))


@torch.no_grad()
def test_controls_change_the_same_rows_by_as_much(model):
    dictionaries = {1: dictionary()}
    edit = make_edit(model, dictionaries, [Feature(1, 3, True)], tau=0.5, mu=5.0)
    for control in (random_control(edit, dictionaries), shuffled_control(edit)):
        lengths = [length for _, _, length in control.changed]
        assert lengths == pytest.approx([length for _, _, length in edit.changed], rel=1e-4)
        assert [row[:2] for row in control.changed] == [row[:2] for row in edit.changed]
        assert control.norm == pytest.approx(edit.norm, rel=1e-4)


@torch.no_grad()
def test_candidates_favour_the_words_whose_directions_they_are(model):
    tokens = single_tokens(model, WORDS[:3])
    own = word_dictionary(model, 1, tokens)
    found = candidates(model, {1: own}, dict(zip(tokens, WORDS, strict=False)), top=1)
    mine = [each for each in found if each.favours and each.index < 3]
    assert {each.words for each in mine} <= {(word,) for word in WORDS[:3]}
    assert len(mine) >= 2
    assert set(mine) <= set(word_features({1: own}, WORDS[:3]))


def test_bad_input(model):
    with pytest.raises(UsageError, match="more than one token"):
        single_tokens(model, (" w1", " zebra"))
    with pytest.raises(UsageError, match="no concept words"):
        single_tokens(model, ())
    with pytest.raises(UsageError, match=r"has to read mlp_out\.1"):
        make_edit(model, {1: dictionary(0)}, [Feature(1, 0, True)], tau=0.5, mu=1.0)
    with pytest.raises(UsageError, match=r"mlp_out\.1 has 16"):
        make_edit(model, {1: dictionary(width=8)}, [Feature(1, 0, True)], tau=0.5, mu=1.0)
    wrong = dictionary()
    wrong.provenance = replace(wrong.provenance, site="resid_post.1")
    with pytest.raises(UsageError, match=r"a dictionary of resid_post\.1"):
        candidates(model, {1: wrong}, {3: " w0"})
    with pytest.raises(UsageError, match="no features"):
        make_edit(model, {1: dictionary()}, [], tau=0.5, mu=1.0)
    with pytest.raises(UsageError, match="no dictionary of that layer"):
        make_edit(model, {1: dictionary()}, [Feature(0, 0, True)], tau=0.5, mu=1.0)
    with pytest.raises(UsageError, match="tau=0"):
        make_edit(model, {1: dictionary()}, [Feature(1, 0, True)], tau=0.0, mu=1.0)
    with pytest.raises(UsageError, match="no concept token stands"):
        signs(model, [[3, 4]], (0,), (30,))
