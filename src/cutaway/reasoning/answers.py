"""Short answers to many prompts that begin alike: the common start is read once, the prompts are answered together.

The sampling engine shares what lies on *one* text; here every prompt ends in a request of its own behind the same
preamble, and a step of one row alone costs nearly as much as one of thirty. Drawn tokens are those of
`draw_rollouts`, seed by seed, up to the rounding of matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.rollouts import rollout_seeds
from cutaway.reasoning.starts import Continued, Start, batches, decoder, unembed
from cutaway.sampling import Cost, Settings
from cutaway.sampling.transform import draw
from cutaway.sampling.types import Finish


@dataclass(frozen=True)
class Answer:
    """What was written after a prompt, without the token that ended it, and how it ended."""

    ids: tuple[int, ...]
    finish: Finish


def short_answers(
    model: Model, prompts: Sequence[Sequence[int]], n: int, settings: Settings, *, seed: int = 0
) -> tuple[list[list[Answer]], Cost]:
    """``n`` answers to each prompt, and what they cost.

    UsageError for greedy settings with n > 1, for stop texts, and for prompts that leave no room in the context.
    """
    if settings.temperature == 0 and n > 1:
        raise UsageError("temperature=0 leaves nothing to resample; use a temperature above 0 or n=1")
    if settings.stop:
        raise UsageError("short answers end at the end token or at max_tokens; leave stop out")
    longest = max(map(len, prompts), default=0) + settings.max_tokens
    if longest > model.n_ctx:
        raise UsageError(f"prompt and answer take {longest} tokens; the context of {model.name} has {model.n_ctx}")
    rows = [(i, drawn) for i, prompt in enumerate(prompts) for drawn in rollout_seeds(prompt, n, seed)]
    found: list[list[Answer]] = [[] for _ in prompts]
    cost, read = Cost(), set[Start]()
    for part, batch in batches(model, [prompts[i] for i, _ in rows], room=settings.max_tokens):
        shared = len(batch.start.ids)
        cost += Cost(prefilled=shared * (batch.start not in read))
        read.add(batch.start)
        for k, answer in zip(part, _answer(model, batch, [rows[k][1] for k in part], settings), strict=True):
            prompt, _ = rows[k]
            found[prompt].append(answer)
            cost += Cost(len(answer.ids) + (answer.finish == "stop"), len(prompts[prompt]) - shared, shared)
    return found, cost


@torch.inference_mode()
def _answer(model: Model, batch: Continued, seeds: Sequence[int], settings: Settings) -> list[Answer]:
    """Read the rows, then a token a step for all of them until the last one ends."""
    given = batch.forward_kwargs()
    generators = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
    written: list[list[int]] = [[] for _ in seeds]
    while True:
        hidden = decoder(model)(**given, use_cache=True).last_hidden_state[:, -1]
        uniforms = torch.tensor([each.random() for each in generators], device=model.device)
        drawn, _ = draw(unembed(model, hidden), uniforms, settings)
        for ids, token in zip(written, drawn.tolist(), strict=True):
            if not ids or ids[-1] not in model.eos_ids:
                ids.append(token)
        ended = [ids[-1] in model.eos_ids for ids in written]
        if all(ended) or max(map(len, written)) == settings.max_tokens:
            break
        mask = given["attention_mask"]
        given |= {
            "input_ids": drawn[:, None],
            "position_ids": given["position_ids"][:, -1:] + 1,
            "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], 1),
        }
    return [
        Answer(tuple(ids[:-1] if stop else ids), "stop" if stop else "length")
        for ids, stop in zip(written, ended, strict=True)
    ]
