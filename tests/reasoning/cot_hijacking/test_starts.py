"""Common starts read once: the same numbers as whole prompts, and the draws of the sampling engine."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny

from cutaway.model import AttentionMask, Scale
from cutaway.reasoning.starts import LONGEST_REST, batches, by_start, continued, last_logits, read_start

IDS = torch.randint(3, 61, (4, 22), generator=torch.Generator().manual_seed(1))
IDS[:, :13] = IDS[0, :13]
PROMPTS = [row[: 22 - 2 * i].tolist() for i, row in enumerate(IDS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_logits_are_those_of_whole_prompts(family: str) -> None:
    model = tiny(family)
    edits = [Scale("mlp_out.1", 1.5), AttentionMask(1, slice(14, None), slice(10, 13), 1)]
    for chosen in ([], edits):
        seen = []
        with torch.no_grad(), model.edited(*chosen):
            whole = [model.capture([row], ["resid_post.*", "logits"], (-2, -1), special=True) for row in PROMPTS]
            for members, batch in batches(model, PROMPTS, keep=2):
                assert batch.start.ids == tuple(PROMPTS[0][:13])
                found = model.capture(batch, "resid_post.*", (-2, -1), special=True)
                logits = last_logits(model, batch)
                for row, i in enumerate(members):
                    seen.append(i)
                    torch.testing.assert_close(logits[row], whole[i]["logits"][0, -1], atol=1e-5, rtol=1e-4)
                    for site, value in found.items():
                        torch.testing.assert_close(value[row], whole[i][site][0], atol=1e-5, rtol=1e-4)
        assert sorted(seen) == list(range(len(PROMPTS)))


def test_a_start_grows_from_what_another_has_in_common() -> None:
    model = tiny("llama")
    first = read_start(model, PROMPTS[0][:20])
    again = read_start(model, PROMPTS[1], first)
    alone = read_start(model, PROMPTS[1])
    assert again.ids == alone.ids == tuple(PROMPTS[1])
    for mine, plain in zip(again.layers, alone.layers, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-5)
    assert read_start(model, PROMPTS[0][:5], first).ids == tuple(PROMPTS[0][:5])
    before = [keys.clone() for keys, _ in first.layers]
    with torch.no_grad():
        last_logits(model, continued(model, first, [[5, 6], [7]]))
    assert all(torch.equal(a, keys) for a, (keys, _) in zip(before, first.layers, strict=True))


@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=9), min_size=1, max_size=12), st.integers(1, 2))
def test_groups_share_their_start_and_lose_no_prompt(prompts: list[list[int]], keep: int) -> None:
    groups = by_start(prompts, keep)
    assert sorted(i for _, members in groups for i in members) == list(range(len(prompts)))
    for start, members in groups:
        for i in members:
            assert tuple(prompts[i][: len(start)]) == start
            assert len(prompts[i]) - len(start) >= keep


def test_prompts_that_share_little_stay_apart() -> None:
    far = [[1, *[k] * LONGEST_REST, 2] for k in (3, 3, 4)]
    far[1][-2] = 9
    assert [members for _, members in by_start(far)] == [[0, 1], [2]]
