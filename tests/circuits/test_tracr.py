"""Programs compiled by Tracr, rebuilt as GPT-2 without norms: the edges that the program needs are found, no others.

Which edges are needed depends on what cut ones carry. Where the corrupted prompt has other tokens at the same places,
all that depends on places alone is the same in both runs: reversing then needs one head's value input and nothing of
the three layers that count and compare places. With zero in their stead those layers are needed as well.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from cutaway.circuits.attribution import Settings, attribute
from cutaway.circuits.evaluation import curve, evaluate
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.pairs import Pair, Pairs
from cutaway.circuits.select import fitted, prune, smallest, top
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer

DATA = Path(__file__).parents[2] / "data" / "tracr"
TRUTH = {
    "frac_prevs": {("embed", "mlp_in.0"), ("mlp_out.0", "v.1.0"), ("z.1.0", "logits")},
    "reverse": {("embed", "v.3.0"), ("z.3.0", "logits")},
}


@dataclass(frozen=True)
class Compiled:
    model: Model
    vocabulary: dict[str, int]
    examples: list[tuple[list[str], list[str | float]]]


def compiled(name: str) -> Compiled:
    """Rebuild the weights as a GPT-2 with one head a layer; keys and values are filled up with zeros."""
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        meta = file.metadata()
    labels, vocabulary = json.loads(meta["residual"]), json.loads(meta["vocabulary"])
    key_size, width, n_pos = int(meta["key_size"]), len(labels), len(weights["pos_embed/embeddings"])
    tokenizer = word_tokenizer(tuple(f" {word}" for word in vocabulary))
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=int(meta["layers"]),
        n_head=1,
        n_positions=n_pos,
        n_inner=weights["layer_0/mlp/linear_1/w"].shape[1],
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        ids = torch.tensor([3 + place for place in range(len(vocabulary))])
        hf.transformer.wte.weight[ids] = weights["token_embed/embeddings"]
        hf.transformer.wpe.weight[:] = weights["pos_embed/embeddings"]
        for layer, block in enumerate(hf.transformer.h):
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            for part, kind in enumerate(("query", "key", "value")):
                scale = (width / key_size) ** 0.5 if kind == "query" else 1.0
                rows = slice(part * width, part * width + key_size)
                block.attn.c_attn.weight[:, rows] = scale * weights[f"layer_{layer}/attn/{kind}/w"]
                block.attn.c_attn.bias[rows] = scale * weights[f"layer_{layer}/attn/{kind}/b"]
            block.attn.c_proj.weight[:key_size] = weights[f"layer_{layer}/attn/linear/w"]
            block.attn.c_proj.bias[:] = weights[f"layer_{layer}/attn/linear/b"]
            for module, kind in ((block.mlp.c_fc, "linear_1"), (block.mlp.c_proj, "linear_2")):
                module.weight[:] = weights[f"layer_{layer}/mlp/{kind}/w"]
                module.bias[:] = weights[f"layer_{layer}/mlp/{kind}/b"]
        hf.transformer.ln_f = nn.Identity()
        _unembed(hf, name, labels, vocabulary)
    examples = [(list(given), list(wanted)) for given, wanted in json.loads(meta["examples"])]
    vocabulary = {word: 3 + place for word, place in vocabulary.items()}
    return Compiled(Model(hf, tokenizer, f"tracr-{name}"), vocabulary, examples)


def _unembed(hf: GPT2LMHeadModel, name: str, labels: list[str], vocabulary: dict[str, int]) -> None:
    """Let a token's logit be the program's output: a share for x, or which token to write."""
    if name == "frac_prevs":
        hf.lm_head.weight[3 + vocabulary["x"], labels.index("frac_prevs_1")] = 1.0
        return
    for token in "abc":
        hf.lm_head.weight[3 + vocabulary[token], labels.index(f"reverse_4:{token}")] = 1.0


def pairs_of(name: str, program: Compiled, seed: int, n: int = 6) -> Pairs:
    """Draw tokens afresh for the corrupted prompt, so that the answer differs."""
    rng, words = np.random.default_rng(seed), program.vocabulary
    drawn: list[Pair] = []
    while len(drawn) < n:
        clean, corrupted = (tuple(rng.choice(list("wxyz" if name == "frac_prevs" else "abc"), 4)) for _ in range(2))
        if name == "frac_prevs":
            # Every token but the last one's place decides; the answer must not happen to agree.
            fine, right, wrong = clean.count("x") > corrupted.count("x"), "x", "BOS"
        else:
            fine, right, wrong = clean[0] != corrupted[0], clean[0], corrupted[0]
        if fine:
            ids = [tuple(words[word] for word in ("BOS", *row)) for row in (clean, corrupted)]
            drawn.append(Pair(ids[0], ids[1], (words[right],), (words[wrong],), "".join(clean)))
    return Pairs(tuple(drawn))


def edges_of(graph: CircuitGraph) -> set[tuple[str, str]]:
    return {(writer, reader) for writer, reader, _ in graph.edges()}


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_the_rebuilt_model_computes_the_program(name: str) -> None:
    """As Tracr's own runtime did; for reversing, at the last place (a causal model does not see what comes after)."""
    program = compiled(name)
    assert program.examples
    for given, wanted in program.examples:
        logits = program.model.logits(program.model.batch([[program.vocabulary[word] for word in given]]))[0]
        if name == "frac_prevs":
            assert torch.allclose(logits[1:, program.vocabulary["x"]], torch.tensor(wanted[1:]), atol=1e-5)
        else:
            assert int(logits[-1].argmax()) == program.vocabulary[str(wanted[-1])]


@pytest.mark.parametrize("name", sorted(TRUTH))
@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact"])
def test_the_needed_edges_are_found_and_no_others(name: str, method: str) -> None:
    program = compiled(name)
    graph = attribute(program.model, pairs_of(name, program, 0), Settings(method, steps=5))
    found = graph.keep(prune(graph.wiring, top(graph, len(TRUTH[name]))))
    assert edges_of(found) == TRUTH[name]
    rest = np.abs(graph.scores[graph.wiring.legal & ~found.mask])
    assert rest.max() < 1e-4 * np.abs(graph.scores[found.mask]).min()


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_the_circuit_does_all_of_the_work_and_no_edge_is_idle(name: str) -> None:
    program = compiled(name)
    held_out = pairs_of(name, program, 1)
    graph = attribute(program.model, pairs_of(name, program, 0), Settings("eap-ig", steps=5))
    found = graph.keep(top(graph, len(TRUTH[name])))
    result = evaluate(program.model, graph, found.mask, held_out, sizes=[1, 9], sets=5, members=20)
    assert np.allclose(result.ndf.values, 1.0, atol=1e-4)
    assert result.faithfulness.value == pytest.approx(1.0, abs=1e-4)
    assert result.controls["random"].value < 0.5
    assert all(result.minimality.needed)
    assert result.minimality.control == pytest.approx(0.0, abs=1e-4)
    assert result.completeness.incompleteness.value == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_the_smallest_faithful_circuit_is_the_program(name: str) -> None:
    program = compiled(name)
    graph = attribute(program.model, pairs_of(name, program, 0), Settings("eap-ig", steps=5))
    held_out = pairs_of(name, program, 1)
    found = smallest(
        lambda sizes: [each.value for each in curve(program.model, graph, held_out, sizes, controls=()).faithfulness],
        graph.n_edges,
        0.999,
    )
    assert found.size == len(TRUTH[name])
    assert np.array_equal(fitted(graph, found.size), prune(graph.wiring, top(graph, found.size)))


def test_with_nothing_in_their_stead_more_edges_are_needed() -> None:
    program = compiled("reverse")
    pairs = pairs_of("reverse", program, 0)
    exact = attribute(program.model, pairs, Settings("exact", ablation="zero"))
    needed = {
        (exact.wiring.writers[writer], exact.wiring.readers[reader])
        for writer, reader in np.argwhere((np.abs(exact.scores) > 0.01) & exact.wiring.legal)
    }
    assert needed > TRUTH["reverse"]
    assert any(reader.startswith("q.3") or reader.startswith("k.3") for _, reader in needed)
