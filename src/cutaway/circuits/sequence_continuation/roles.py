"""What heads of a circuit look at and what they would write, and at which layer the answer appears.

1. Attention: the mean pattern from the last token to the four members, and to everything else.
2. OV test: the stream after block 0 at each shown member goes through the head's **own** layer norm, its value and
   output projections without the output bias, the final norm and the unembedding. Next score: share of members whose
   successor is among the top tokens; copy score: share that are among the top tokens themselves. For months also the
   ordinal word of the successor's place (February -> " third"): GPT-2's head writes those.
3. Logit lens: the stream after each block, through the final norm once, and the unembedding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.circuits.nodes import read_out
from cutaway.circuits.sequence_continuation.data import MEMBERS, ORDINALS, Rows
from cutaway.circuits.sequence_continuation.result import HeadRole, Lens
from cutaway.model import Model
from cutaway.model.model import Batch
from cutaway.stats import Interval, wilson


@torch.no_grad()
def head_roles(
    model: Model, rows: Rows, heads: Sequence[str], *, members: Sequence[str] | None = None, top: int = 5
) -> tuple[HeadRole, ...]:
    """Attention, next score and copy score of ``heads`` (``z.L.H``).

    members: the task's list in order; default the one in `MEMBERS`.
    """
    listed = tuple(members if members is not None else MEMBERS[rows.task])
    shown, following, ordinal = _targets(model, rows, listed)
    stream = model.capture(_batch(rows.ids), "resid_post.0", rows.places)["resid_post.0"].flatten(0, 1)
    roles = []
    for name in heads:
        _, layer, head = name.split(".")
        best = read_out(model, ov_write(model, stream, int(layer), int(head))).topk(top).indices
        share = attention_shares(model, rows, int(layer))[int(head)]
        roles.append(
            HeadRole(
                name,
                *share,
                _share(best, following),
                _share(best, shown),
                _share(best, ordinal) if bool((ordinal >= 0).any()) else None,
            )
        )
    return tuple(roles)


@torch.no_grad()
def ov_write(model: Model, stream: Float[Tensor, "n d_model"], layer: int, head: int) -> Float[Tensor, "n d_model"]:
    """What a head adds to the stream at a token that it attends to with weight 1, the output bias left out.

    A row of one token attends to itself alone, so what enters the output projection is the value that the block's own
    norm and value projection make of ``stream``.
    """
    ids = torch.zeros(len(stream), 1, dtype=torch.long, device=stream.device)
    with model.started(layer, stream[:, None]):
        z = model.capture(_batch(ids), f"z.{layer}")[f"z.{layer}"]
    only = torch.zeros_like(z)
    only[:, :, head] = z[:, :, head]
    project = model.layout.attn(layer).get_submodule(model.layout.shape.o)
    written: Tensor = project(only.flatten(-2)) - project(torch.zeros_like(only).flatten(-2))
    return written[:, 0]


@torch.no_grad()
def attention_shares(model: Model, rows: Rows, layer: int) -> list[tuple[float, float, float]]:
    """For each head of a layer: mean attention from the last token to the members, the last of them, and the rest.

    The first token, where attention rests that has nothing to do, is in neither.
    """
    pattern = model.capture(_batch(rows.ids), f"pattern.{layer}", "last", special=True)[f"pattern.{layer}"]
    mean = pattern[:, :, 0].double().mean(0)  # [head keys]
    members = mean[:, list(rows.places)]
    rest = mean.sum(-1) - members.sum(-1) - mean[:, 0]
    return [
        (float(all_of), float(last), float(other))
        for all_of, last, other in zip(members.sum(-1), members[:, -1], rest, strict=True)
    ]


@torch.no_grad()
def logit_lens(model: Model, rows: Rows) -> Lens:
    """The answer's lead over the distractor, and how often it is the top token, after each block."""
    found = model.capture(_batch(rows.ids), "resid_post.*", "last")
    n, difference, right = torch.arange(len(rows), device=rows.ids.device), [], []
    for layer in range(model.layout.n_layers):
        logits = read_out(model, found[f"resid_post.{layer}"][:, 0])
        difference.append(float((logits[n, rows.answer] - logits[n, rows.distractor]).mean()))
        right.append(float((logits.argmax(-1) == rows.answer).double().mean()))
    return Lens(rows.task, np.array(difference), np.array(right))


def _targets(
    model: Model, rows: Rows, listed: Sequence[str]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Token ids, for each shown member, of itself, its successor and the successor's ordinal word (-1: none)."""
    token = {}
    for prompt, answer in zip(rows.prompts, rows.answer.tolist(), strict=True):
        token[prompt.answer] = answer
    for prompt, ids in zip(rows.prompts, rows.ids.tolist(), strict=True):
        token |= {m: ids[place] for m, place in zip(prompt.members, rows.places, strict=True)}
    shown = [m for prompt in rows.prompts for m in prompt.members]
    following = [m for prompt in rows.prompts for m in (*prompt.members[1:], prompt.answer)]
    ordinals = []
    for member in following:
        place = listed.index(member)
        ids = model.encode(f" {ORDINALS[place]}") if rows.task == "months" and place < len(ORDINALS) else []
        ordinals.append(ids[0] if len(ids) == 1 else -1)
    device = rows.ids.device
    return (
        torch.tensor([token[m] for m in shown], device=device),
        torch.tensor([token[m] for m in following], device=device),
        torch.tensor(ordinals, device=device),
    )


def _share(best: Int[Tensor, "n top"], wanted: Int[Tensor, " n"]) -> Interval:
    """Wilson interval of the share of rows whose wanted token is among the best; rows without one are left out."""
    asked = wanted >= 0
    return wilson(int((best == wanted[:, None]).any(-1)[asked].sum()), int(asked.sum()))


def _batch(ids: Tensor) -> Batch:
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool))
