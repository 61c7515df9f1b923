"""What training costs: tokens a second against Hugging Face's Trainer with PEFT, an edited site, dense checkpoints.

Both sides train one rank-1 adapter on each down projection, on the same rows in the same batches, in fp32, by AdamW.
Rows are chats: the first two thirds of each carry no loss. Where the processor multiplies bf16 natively, ours is also
timed with it. The trained model then answers a survey's questions in batches, against ``generate`` question by
question.

    python benchmarks/training.py [--quick] [--out FILE.json]
"""

import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.model import Add, Model, load_model
from cutaway.model.load import native_bf16
from cutaway.organisms.quirks import items
from cutaway.sampling import Settings
from cutaway.steering import draw_answers
from cutaway.training import Data, LoraSpec, Row, TrainConfig, add_lora, data_of, train

NAME = os.environ.get("TRAINING_MODEL", "smollm2-135m-instruct")
"""A directory of a tiny checkpoint may stand in, to see that the program runs."""
SPEC = LoraSpec(modules=("down_proj",), rank=1, alpha=64.0)
STEPS, BATCH, COLUMNS = 5, 2, 48
ASKED, TOKENS = 12, 12
"""Questions of the survey and tokens of each answer."""


def rows(model: Model) -> Data:
    """Rows of two thirds to all of the width, in an order both sides keep."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(STEPS * BATCH):
        length = int(torch.randint(2 * COLUMNS // 3, COLUMNS + 1, (1,), generator=draw))
        ids = torch.randint(3, model.vocab_size, (length,), generator=draw).tolist()
        made.append([Row(tuple(ids), (0.0,) * (2 * length // 3) + (1.0,) * (length - 2 * length // 3))])
    return data_of(made, context=COLUMNS)


def ours(model: Model, data: Data, config: TrainConfig, edited: bool, _: int) -> float:
    """Seconds spent are the caller's to take; the last loss shows that both sides do the same."""
    edits = [Add(f"resid_post.{model.n_layers // 2}", torch.full((model.d_model,), 0.01))] if edited else []
    with tempfile.TemporaryDirectory() as folder:
        return train(model, data, config, edits=edits, folder=folder if config.weights_every else None).history[-1].loss


def theirs(model: Model, data: Data, _: int) -> int:
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def pad(batch: list[Row]) -> dict[str, torch.Tensor]:
        width = max(len(row.ids) for row in batch)
        blank = [width - len(row.ids) for row in batch]
        ids = torch.tensor([(*row.ids, *[0] * n) for row, n in zip(batch, blank, strict=True)])
        mask = torch.tensor([[1] * len(row.ids) + [0] * n for row, n in zip(batch, blank, strict=True)])
        learnt = torch.tensor([[*map(bool, row.weights), *[False] * n] for row, n in zip(batch, blank, strict=True)])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(learnt, ids, -100)}

    with tempfile.TemporaryDirectory() as folder:
        given = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        listed = [example[0] for example in data.examples]
        return InOrder(model.hf, given, data_collator=pad, train_dataset=listed).train().global_step


def in_batches(model: Model, prompts: list[tuple[int, ...]], _: int) -> int:
    settings = Settings(temperature=0.0, top_p=1.0, max_tokens=TOKENS)
    return sum(len(answer.ids) for (answer,) in draw_answers(model, prompts, settings))


def one_by_one(model: Model, prompts: list[tuple[int, ...]], _: int) -> int:
    count = 0
    for ids in prompts:
        given = torch.tensor([ids])
        with torch.no_grad():
            found = model.hf.generate(
                given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=TOKENS
            )
        count += found.shape[1] - len(ids)
    return count


def main() -> None:
    given = options(__doc__)
    warnings.simplefilter("ignore")
    model, other = (add_lora(load_model(NAME, dtype="float32", device="cpu"), SPEC) for _ in range(2))
    data = rows(model)
    config = TrainConfig(rate=1e-4, batch=BATCH, steps=STEPS, shuffle=False, bucket=1, precision="float32")
    dense = TrainConfig(**{**vars(config), "weights_every": 5})
    sides = {
        "plain": partial(ours, model, data, config, False),
        "edited": partial(ours, model, data, config, True),
        "dense": partial(ours, model, data, dense, False),
        "trainer": partial(theirs, other, data),
    }
    if native_bf16(torch.device("cpu")):
        half = add_lora(load_model(NAME, dtype="bfloat16", device="cpu"), SPEC)
        sides["bf16"] = partial(ours, half, data, TrainConfig(**{**vars(config), "precision": "bfloat16"}), False)
    found = interleaved(2 if given.quick else 5, **sides)
    prompts = [tuple(model.chat_ids(item.question)) for item in items("cooking")[:ASKED]]
    surveys = {"batches": partial(in_batches, model, prompts), "loop": partial(one_by_one, model, prompts)}
    found |= interleaved(1 if given.quick else 3, **surveys)
    peer = "Hugging Face Trainer with PEFT"
    claims = []
    for clock in ("wall", "cpu"):
        speed = ratios(found, "trainer", "plain", clock)
        claims.append(claim(f"tokens/s, rank 1, fp32, {clock}", peer, speed, bar=1.0, at_least=True))
        claims.append(claim(f"one edited site, {clock}", "no edit", ratios(found, "edited", "plain", clock), bar=1.05))
        cost = ratios(found, "dense", "plain", clock)
        claims.append(claim(f"adapter checkpoint each five steps, {clock}", "none", cost, bar=1.05))
        answers = ratios(found, "loop", "batches", clock)
        claims.append(
            claim(f"{ASKED} answers in batches, {clock}", "generate, one by one", answers, bar=3.0, at_least=True)
        )
        if "bf16" in found:
            fast = ratios(found, "trainer", "bf16", clock)
            claims.append(claim(f"tokens/s, rank 1, bf16, {clock}", peer, fast, bar=3.0, at_least=True))
    seconds = {name: [each[:2] for each in runs] for name, runs in found.items()}
    tokens = data.tokens
    report(given, claims, model=Path(NAME).name, tokens=tokens, steps=STEPS, batch=BATCH, seconds=seconds)


if __name__ == "__main__":
    main()
