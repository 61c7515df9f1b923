"""Dialogues that keep their keys and values from turn to turn, against encoding the whole history again each turn.

20 dialogues of 20 turns side by side (item 1 is a demonstration), greedy, fp32. Ours answers every turn. At three
turns, the midpoints of equal parts of a dialogue, the peers are given the same prompts, so their answers have to be
the same; a figure is the seconds of these turns. Two peers:

- `again` is our own engine that holds nothing. It decodes side by side as ours does, shares the system text, and pays
  for the history alone: what keeping the cache is worth. Decoding costs both the same, and the fewer rows share a step
  the more it weighs: with 5 dialogues (not run here) it hides most of the gain.
- `generate` is one call of Hugging Face's `generate` a dialogue, as the published scripts do it. It gains nothing from
  company, so it answers the first dialogues only; its figure is seconds a dialogue.

    python benchmarks/dialogue.py [--quick] [--out FILE.json]
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timing import Run, claim, interleaved, options, report

from cutaway.model import Edit, Model, load_model
from cutaway.reasoning.history_echoes import Chat, get_phenomenon, plan_dialogues, run_dialogues, select_items
from cutaway.reasoning.history_echoes.engine import DialogueEngine
from cutaway.sampling import Cost, Request, Rollout, Settings

TURNS, DIALOGUES, QUICK, ALONE = 20, 20, 10, 2
COMPARED = (4, 10, 16)
"""Which of the 19 answers of a dialogue the peers give too, counted from 1."""
SETTINGS = Settings(temperature=0.0, top_p=1.0, max_tokens=24)
SYSTEM = "Answer the question in one short sentence."


class Beside:
    """Our engine; at some turns the peers answer the same prompts too, and everybody's seconds are kept."""

    def __init__(self, model: Model, slots: int) -> None:
        self.model, self.identity, self.cost = model, model.fingerprint, Cost()
        self.kept, self.turn = DialogueEngine(model, slots), 0
        self.runs: dict[str, list[Run]] = defaultdict(list)

    def token_probs(self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings) -> None:
        return None

    def stream(self, requests: Sequence[Request], edits: Sequence[Edit] = ()) -> Iterator[tuple[int, Rollout]]:
        self.turn += 1
        sides = {"kept": lambda: list(self.kept.stream(requests))}
        if self.turn in COMPARED:
            sides["again"] = lambda: list(DialogueEngine(self.model, len(requests)).stream(requests))
            sides["generate"] = lambda: [(i, self.generate(each)) for i, each in enumerate(requests[:ALONE])]
        found = {name: once(side) for name, side in sides.items()}
        if len(found) > 1:
            for name, run in found.items():
                self.runs[name].append(run)
        yield from found["kept"].value

    def generate(self, request: Request) -> Rollout:
        rows = torch.tensor([request.prefix])
        out = self.model.hf.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=False,
            max_new_tokens=request.settings.max_tokens,
            pad_token_id=min(self.model.eos_ids),
        )
        ids = tuple(out[0, rows.shape[1] :].tolist())
        return Rollout(request.seeds[0], ids, (0.0,) * len(ids), "stop")


def once(side: Callable[[], Any]) -> Run:
    return interleaved(1, side=lambda repeat: side() if repeat == 0 else None)["side"][0]


def block(model: Model, dialogues: int, turns: int, seed: int) -> Beside:
    engine = Beside(model, dialogues)
    plan = plan_dialogues(select_items(), dialogues, turns, "shuffled", seed=seed)
    run_dialogues(Chat(model, engine, SETTINGS, SYSTEM), plan, get_phenomenon("hallucination"), width=dialogues)
    return engine


def speed_up(engine: Beside, peer: str, clock: str, dialogues: int) -> float:
    """How many times more dialogues a second ours answers than ``peer``, over the turns that both answered."""
    ours, theirs = (sum(getattr(run, clock) for run in engine.runs[name]) for name in ("kept", peer))
    return theirs / (ALONE if peer == "generate" else dialogues) / (ours / dialogues)


def identical(engine: Beside, peer: str) -> float:
    """Share of the peer's answers that are ours."""
    pairs = [
        (answer.ids, dict(ours.value)[i].ids)
        for ours, theirs in zip(engine.runs["kept"], engine.runs[peer], strict=True)
        for i, answer in theirs.value
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def main() -> None:
    given = options(__doc__)
    dialogues, blocks = (QUICK, 1) if given.quick else (DIALOGUES, 2)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    block(model, 2, 3, seed=0)
    found = [block(model, dialogues, TURNS, seed) for seed in range(blocks)]
    claims = []
    for peer, what in (
        ("again", "history encoded again, decoded side by side"),
        ("generate", "one generate call each"),
    ):
        for clock in ("wall", "cpu"):
            faster = [speed_up(each, peer, clock, dialogues) for each in found]
            claims.append(claim(f"dialogues a second, {clock}", what, faster, bar=3.0, at_least=True))
        same = [identical(each, peer) for each in found]
        claims.append(claim("greedy answers that are identical", what, same, bar=1.0, at_least=True, unit="share"))
    seconds = [{name: [run[:2] for run in runs] for name, runs in each.runs.items()} for each in found]
    costs = [vars(each.kept.cost) for each in found]
    report(given, claims, dialogues=dialogues, turns=[TURNS, COMPARED], seconds=seconds, costs=costs)


if __name__ == "__main__":
    main()
