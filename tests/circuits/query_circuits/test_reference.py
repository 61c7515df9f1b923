"""The engine equals the published algorithm written plainly, on a grouped-query Llama with biases and three layers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cutaway.circuits.attribution import Settings, edge_scores
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.record import reference
from cutaway.circuits.wiring import Wiring
from cutaway.model import Model

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("circuits_reference", BENCHMARKS / "circuits_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_equal_the_published_algorithm(plain: ModuleType, llama: Model, pairs: Pairs) -> None:
    wiring = Wiring.of(llama, "expanded")
    scores = edge_scores(anatomy(llama), wiring, pairs, Settings("eap-ig", steps=5))
    for row in range(len(pairs)):
        one = pairs[row : row + 1]
        slow = plain.Reference(llama.hf).attribute(one.clean, one.corrupted, one.value, 5)
        assert torch.allclose(scores[row], slow * torch.from_numpy(wiring.legal), atol=1e-5)
        assert slow.abs().max() > 0.1


@torch.no_grad()
def test_each_edge_removed_alone_equals_brute_force(plain: ModuleType, llama: Model, pairs: Pairs) -> None:
    """Card, acceptance 2: every single-edge-removed circuit of a three-layer model."""
    body, wiring, one = anatomy(llama), Wiring.of(llama, "expanded"), pairs[:1]
    legal = torch.from_numpy(wiring.legal)
    masks = legal.repeat(wiring.n_edges, 1, 1)
    edges = legal.nonzero()
    masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    instead = reference(body, one.corrupted, "corrupted")
    fast = torch.cat([run(body, wiring, one.clean, part, instead)[:, 0] for part in masks.split(300)])
    slow = plain.Reference(llama.hf)
    other = slow.writers(one.corrupted)
    brute = torch.cat([slow.forward(one.clean, cut=(legal & ~mask).float(), other=other).logits for mask in masks])
    assert len(edges) == wiring.n_edges == 262
    assert torch.allclose(fast, brute, atol=1e-5)
    assert (fast - fast[0]).abs().max() > 0.01


@torch.no_grad()
def test_circuits_equal_one_at_a_time(plain: ModuleType, llama: Model, pairs: Pairs) -> None:
    body, wiring, one = anatomy(llama), Wiring.of(llama, "expanded"), pairs[1:]
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, *wiring.legal.shape, generator=generator) < torch.linspace(0.02, 0.98, 20)[:, None, None]
    fast = run(body, wiring, one.clean, masks, reference(body, one.corrupted, "corrupted"))[:, 0]
    slow = plain.Reference(llama.hf)
    each = torch.cat([slow.circuit(one.clean, one.corrupted, mask) for mask in masks])
    assert torch.allclose(fast, each, atol=1e-5)
