"""Running lists against the full matrix of activations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cutaway.features.index.collect import BARS, EDGES, Collector, TextRows, bars

TEXTS, POS, UNITS, TOP, WINDOW, BEFORE = 37, 9, 6, 4, 5, 3


def matrix(seed: int, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations with many ties, their mask, where texts begin and how long they are."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(TEXTS, POS, UNITS, generator=generator)
    acts = (acts / step).round() * step if step else acts
    acts[:, :, 5] = -acts[:, :, 5].abs() - 0.1
    lengths = torch.randint(3, POS + 1, (TEXTS,), generator=generator)
    mask = torch.arange(POS) < lengths[:, None]
    mask[:, 0] = False  # a start token
    mask[4, 2] = False  # a special token within
    acts[~mask] = 99.0
    return acts, mask, torch.ones(TEXTS, dtype=torch.long), lengths


def collected(data: tuple[Tensor, Tensor, Tensor, Tensor], batch: int) -> Collector:
    acts, mask, first, lengths = data
    made = Collector(UNITS, TOP, 3, WINDOW)
    for i in range(0, TEXTS, batch):
        chosen = slice(i, i + batch)
        assert made.add(acts[chosen], TextRows(i, mask[chosen], first[chosen], lengths[chosen], BEFORE))
    return made


@pytest.mark.parametrize("step", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 5, TEXTS])
def test_top_texts_are_those_of_a_stable_sort_of_all(step: float, batch: int) -> None:
    data = matrix(1, step)
    acts, mask, _, lengths = data
    top = collected(data, batch).top
    for unit in range(UNITS):
        peaks = [max(acts[t, p, unit].item() for p in range(POS) if mask[t, p]) for t in range(TEXTS)]
        order = [t for t in sorted(range(TEXTS), key=lambda t: -peaks[t]) if peaks[t] > 0][:TOP]
        assert [c for c in top.context[unit].tolist() if c >= 0] == order
        for slot, text in enumerate(order):
            at = next(p for p in range(POS) if mask[text, p] and acts[text, p, unit].item() == peaks[text])
            assert (top.peak[unit, slot].item(), top.position[unit, slot].item()) == (peaks[text], at)
            start = max(1, min(at - BEFORE, int(lengths[text]) - WINDOW))
            assert top.start[unit, slot].item() == start
            for i, value in enumerate(top.values[unit, slot].tolist()):
                p = start + i
                if p < lengths[text] and mask[text, p]:
                    assert value == acts[text, p, unit].item()
                else:
                    assert np.isnan(value)
    assert top.context[5].tolist() == [-1] * TOP


def test_nothing_depends_on_the_batch() -> None:
    data = matrix(2, 0.5)
    ours = collected(data, 3).state()
    for name, value in collected(data, 11).state().items():
        assert torch.equal(value.nan_to_num(7.0), ours[name].nan_to_num(7.0)), name


def test_random_texts_are_distinct_fire_and_cover_all() -> None:
    data = matrix(3, 0.0)
    some = collected(data, 7).some
    fires = (data[0].masked_fill(~data[1][..., None], -1.0).amax(1) > 0).T
    for unit in range(UNITS):
        found = [c for c in some.context[unit].tolist() if c >= 0]
        assert len(set(found)) == len(found) == min(3, int(fires[unit].sum()))
        assert all(fires[unit, c] for c in found)
    assert len(set(some.context[:5].flatten().tolist())) > 6  # not the same texts for every unit


def test_random_texts_are_drawn_evenly() -> None:
    units, n = 400, 40
    made = Collector(units, 1, 1, 1)
    ones = torch.ones(n, 1, units)
    lengths = torch.ones(n, dtype=torch.long)
    made.add(ones, TextRows(0, torch.ones(n, 1, dtype=torch.bool), torch.zeros_like(lengths), lengths, 0))
    counts = torch.bincount(made.some.context[:, 0].long(), minlength=n)
    assert counts.sum() == units
    # 10 expected in each of 40; chi square with 39 degrees of freedom stays below 77.
    assert float(((counts - 10.0) ** 2 / 10).sum()) < 77


def test_counts_and_histogram_against_numpy() -> None:
    data = matrix(4, 0.0)
    made = collected(data, 8)
    inside = data[0][data[1]].numpy()
    assert made.fired.tolist() == (inside > 0).sum(0).tolist()
    ends = np.array([-np.inf, *(-e for e in reversed(EDGES)), *EDGES, np.inf])
    for unit in range(UNITS):
        assert made.bars[unit].tolist() == np.histogram(inside[:, unit], ends)[0].tolist()


def test_bars_at_their_edges_and_beyond() -> None:
    values = torch.tensor([[0.0], [EDGES[0]], [EDGES[0] * 0.999], [-EDGES[3]], [1e30], [-1e-30], [3.0]])
    found = bars(values)[0]
    middle = BARS // 2
    assert int(found.sum()) == 7
    assert found[middle].item() == 3
    assert found[middle + 1].item() == 1
    assert found[middle - 4].item() == 1
    assert found[-1].item() == 1
    assert found[middle + 1 + EDGES.index(3.0)].item() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_and_change_nothing(bad: float) -> None:
    acts, mask, first, lengths = matrix(5, 0.0)
    acts[2, 1, 3] = bad
    made = Collector(UNITS, TOP, 0, WINDOW)
    assert not made.add(acts, TextRows(0, mask, first, lengths, BEFORE))
    assert int(made.bars.sum()) == 0
    assert (made.top.context == -1).all()
