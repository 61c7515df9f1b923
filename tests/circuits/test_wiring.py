"""Edges follow from a few numbers; totals are those that other tools publish."""

import numpy as np
import pytest

from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model import Model

TOTALS = [
    (12, 12, 12, "shared", 157, 445, 32_491),  # GPT-2 Small
    (30, 9, 3, "expanded", 301, 841, 123_211),  # SmolLM2-135M
    (30, 9, 3, "shared", 301, 481, 70_651),
    (24, 14, 2, "expanded", 361, 1_033, 179_749),  # Qwen2.5-0.5B
    (16, 32, 8, "expanded", 529, 1_553, 386_713),  # Llama-3.2-1B
    (32, 32, 8, "expanded", 1_057, 3_105, 1_592_881),  # Llama-3-8B
    (18, 4, 1, "expanded", 91, 235, 10_342),  # Gemma-3-270M
]


@pytest.mark.parametrize(("layers", "heads", "kv", "grouping", "writers", "readers", "edges"), TOTALS)
def test_published_totals(
    layers: int, heads: int, kv: int, grouping: str, writers: int, readers: int, edges: int
) -> None:
    wiring = Wiring(layers, heads, kv, grouping)
    assert (len(wiring.writers), len(wiring.readers), wiring.n_edges) == (writers, readers, edges)


def test_no_edge_into_an_earlier_layer_and_every_head_before_its_mlp() -> None:
    wiring = Wiring(3, 2, 1)
    assert wiring.legal[wiring.writer("z.1.0"), wiring.reader("mlp_in.1")]
    assert not wiring.legal[wiring.writer("z.1.0"), wiring.reader("q.1.1")]
    assert not wiring.legal[wiring.writer("mlp_out.1"), wiring.reader("mlp_in.1")]
    assert wiring.legal[:, wiring.reader("logits")].all()
    parallel = Wiring(3, 2, 1, parallel=True)
    assert not parallel.legal[parallel.writer("z.1.0"), parallel.reader("mlp_in.1")]
    assert np.array_equal(Wiring(**wiring.to_dict()).legal, wiring.legal)


def test_a_shared_key_belongs_to_the_heads_of_its_group() -> None:
    wiring = Wiring(2, 4, 2)
    names = lambda reader: [wiring.writers[at] for at in wiring.outputs_of(wiring.reader(reader))]  # noqa: E731
    assert names("k.1.1") == ["z.1.2", "z.1.3"]
    assert names("q.1.3") == ["z.1.3"]
    assert names("mlp_in.0") == ["mlp_out.0"]
    assert names("logits") == []
    expanded = Wiring(2, 4, 2, "expanded")
    assert [expanded.writers[at] for at in expanded.outputs_of(expanded.reader("v.0.2"))] == ["z.0.2"]


def test_of_a_model_of_every_family(model: Model) -> None:
    wiring = Wiring.of(model)
    assert wiring.parallel == (model.hf.config.model_type == "gpt_neox" and model.hf.config.use_parallel_residual)
    assert len(wiring.writers) == 1 + 3 * 5


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="did you mean 'expanded'"):
        Wiring(2, 2, 2, "expandd")
    with pytest.raises(UsageError, match="cannot share"):
        Wiring(2, 3, 2)
    with pytest.raises(UsageError, match=r"no writer 'z.0.9'"):
        Wiring(2, 2, 2).writer("z.0.9")
