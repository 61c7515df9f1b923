"""Dialogues that keep their keys and values from turn to turn, against encoding the whole history again each turn.

Greedy decoding, fp32, the same questions and so the same answers. `again` forgets every row before each turn but
decodes side by side as ours does; `generate` is one `generate` call a turn and dialogue, as scripts usually do it.

    python benchmarks/dialogue.py [--quick] [--out FILE.json]
"""

from collections.abc import Iterator, Sequence

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.model import Edit, Model, load_model
from cutaway.reasoning.history_echoes import Chat, get_phenomenon, plan_dialogues, run_dialogues, select_items
from cutaway.reasoning.history_echoes.engine import DialogueEngine
from cutaway.sampling import Cost, Request, Rollout, Settings

TURNS, SLOTS = 20, 16
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

    def __init__(self, model: Model) -> None:
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
            yield i, Rollout(request.seeds[0], ids, (0.0,) * len(ids), "stop")


def answers(model: Model, engine: DialogueEngine | Generate, dialogues: int, turns: int) -> Answers:
    plan = plan_dialogues(select_items(), dialogues, turns, "shuffled", seed=0)
    chat = Chat(model, engine, SETTINGS, SYSTEM)
    found = run_dialogues(chat, plan, get_phenomenon("hallucination"), width=SLOTS)
    return [[reply.text for reply in each.replies if reply is not None] for each in found.dialogues]


def main() -> None:
    given = options(__doc__)
    dialogues, turns, repeats = (8, TURNS, 1) if given.quick else (100, TURNS, 3)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    engines = {"kept": DialogueEngine, "again": Forgetful, "generate": lambda model, _: Generate(model)}

    def side(name: str, repeat: int) -> tuple[Answers, Cost]:
        engine = engines[name](model, SLOTS)
        size = (2, 3) if repeat < 0 else (dialogues, turns)
        return answers(model, engine, *size), engine.cost

    sides = {name: lambda repeat, name=name: side(name, repeat) for name in engines}
    found = interleaved(repeats, **sides)
    pairs = [(a, b) for one, other in zip(found["kept"][0].value[0], found["again"][0].value[0], strict=True)
             for a, b in zip(one, other, strict=True)]  # fmt: skip
    same = [a == b for a, b in pairs]
    claims = [
        claim(
            f"dialogues a second, {clock}, {name}",
            baseline,
            ratios(found, ours, "kept", clock),
            bar=bar,
            at_least=True,
        )
        for clock in ("wall", "cpu")
        for name, ours, baseline, bar in (
            ("side by side", "again", "history encoded again each turn, side by side", 3.0),
            ("one at a time", "generate", "one generate call a turn", None),
        )
    ]
    claims.append(
        claim(
            "greedy answers that are identical",
            "the same without reuse",
            [sum(same) / len(same)],
            bar=1.0,
            at_least=True,
            unit="share",
        )
    )
    costs = {name: vars(runs[0].value[1]) for name, runs in found.items()}
    seconds = {name: [each[:2] for each in runs] for name, runs in found.items()}
    report(given, claims, size=[dialogues, turns], seconds=seconds, costs=costs, identical=[sum(same), len(same)])


if __name__ == "__main__":
    main()
