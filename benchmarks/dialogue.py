"""Dialogues that keep their keys and values from turn to turn, against encoding the whole history again each turn.

100 dialogues of 20 turns (item 1 is a demonstration), greedy, fp32, the same questions and so the same answers. A
repeat is a block of dialogues that each side runs in full; a figure is the median over blocks. Two peers:

- `again` is our own engine made to forget every row before each turn. It decodes side by side as ours does, shares
  the system text within a turn, and pays for the history alone: what keeping the cache is worth.
- `generate` is one call of Hugging Face's `generate` a turn and dialogue, as the published scripts do it. It gains
  nothing from company, so it runs the first dialogues of each block only; its figure is seconds a dialogue.

    python benchmarks/dialogue.py [--quick] [--out FILE.json]
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from timing import Run, claim, interleaved, options, report

from cutaway.model import Edit, Model, load_model
from cutaway.reasoning.history_echoes import Chat, get_phenomenon, plan_dialogues, run_dialogues, select_items
from cutaway.reasoning.history_echoes.engine import DialogueEngine
from cutaway.sampling import Cost, Request, Rollout, Settings

DIALOGUES, TURNS, BLOCK, ALONE = 100, 20, 20, 2
SETTINGS = Settings(temperature=0.0, top_p=1.0, max_tokens=24)
SYSTEM = "Answer the question in one short sentence."
Answers = list[list[str]]


class Forgetful(DialogueEngine):
    """Our engine without what it held."""

    def stream(self, requests: Sequence[Request], edits: Sequence[Edit] = ()) -> Iterator[tuple[int, Rollout]]:
        fresh = DialogueEngine(self.model, self.slots)
        yield from fresh.stream(requests, edits)
        self.cost += fresh.cost


class Generate:
    """Hugging Face's own loop, one dialogue after the other."""

    def __init__(self, model: Model, slots: int) -> None:
        self.model, self.identity, self.cost = model, model.fingerprint, Cost()

    def token_probs(self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings) -> None:
        return None

    def stream(self, requests: Sequence[Request], edits: Sequence[Edit] = ()) -> Iterator[tuple[int, Rollout]]:
        for i, request in enumerate(requests):
            rows = torch.tensor([request.prefix])
            out = self.model.hf.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=False,
                max_new_tokens=request.settings.max_tokens,
                pad_token_id=min(self.model.eos_ids),
            )
            ids = tuple(out[0, rows.shape[1] :].tolist())
            self.cost += Cost(decoded=len(ids), prefilled=len(request.prefix))
            yield i, Rollout(request.seeds[0], ids, (0.0,) * len(ids), "stop")


ENGINES = {"kept": DialogueEngine, "again": Forgetful, "generate": Generate}
PEERS = {
    "again": "history encoded again each turn, decoded side by side",
    "generate": "one generate call a turn and dialogue",
}


def answers(engine: DialogueEngine | Generate, dialogues: int, turns: int, seed: int) -> Answers:
    plan = plan_dialogues(select_items(), dialogues, turns, "shuffled", seed=seed)
    chat = Chat(engine.model, engine, SETTINGS, SYSTEM)
    found = run_dialogues(chat, plan, get_phenomenon("hallucination"), width=dialogues)
    return [[reply.text for reply in each.replies if reply is not None] for each in found.dialogues]


def speed_ups(found: dict[str, list[Run]], peer: str, sizes: dict[str, int], clock: str) -> list[float]:
    """How many times more dialogues a second ours answers than ``peer``, block by block."""
    return [
        (getattr(theirs, clock) / sizes[peer]) / (getattr(ours, clock) / sizes["kept"])
        for ours, theirs in zip(found["kept"], found[peer], strict=True)
    ]


def identical(found: dict[str, list[Run]], peer: str) -> list[bool]:
    """Whether each answer is the one that ``peer`` gives, over the dialogues that both had."""
    blocks = zip(found["kept"], found[peer], strict=True)
    dialogues = chain.from_iterable(zip(a.value[0], b.value[0], strict=False) for a, b in blocks)
    return [a == b for ours, theirs in dialogues for a, b in zip(ours, theirs, strict=True)]


def main() -> None:
    given = options(__doc__)
    block, blocks = (5, 1) if given.quick else (BLOCK, DIALOGUES // BLOCK)
    sizes = {"kept": block, "again": block, "generate": 1 if given.quick else ALONE}
    model = load_model("smollm2-135m-instruct", dtype="float32")

    def side(name: str, repeat: int) -> tuple[Answers, Cost]:
        engine = ENGINES[name](model, block)
        found = answers(engine, *((2, 3) if repeat < 0 else (sizes[name], TURNS)), seed=max(repeat, 0))
        return found, engine.cost

    found = interleaved(blocks, **{name: lambda repeat, name=name: side(name, repeat) for name in ENGINES})
    claims = [
        claim(f"dialogues a second, {clock}", baseline, speed_ups(found, peer, sizes, clock), bar=3.0, at_least=True)
        for peer, baseline in PEERS.items()
        for clock in ("wall", "cpu")
    ]
    for peer, baseline in PEERS.items():
        same = identical(found, peer)
        share = [sum(same) / len(same)]
        claims.append(claim("greedy answers that are identical", baseline, share, bar=1.0, at_least=True, unit="share"))
    costs = {name: [vars(run.value[1]) for run in runs] for name, runs in found.items()}
    seconds = {name: [run[:2] for run in runs] for name, runs in found.items()}
    report(given, claims, blocks=[blocks, block, TURNS], seconds=seconds, costs=costs)


if __name__ == "__main__":
    main()
