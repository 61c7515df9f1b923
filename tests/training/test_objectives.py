"""Every objective against the formula worked out by hand, and against Hugging Face's Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from training_data import rows_of, tiny

from cutaway.errors import UsageError
from cutaway.model import Add, Model
from cutaway.training import (
    DPO,
    Data,
    Distil,
    LoraSpec,
    NextToken,
    RewardWeighted,
    Row,
    Tagging,
    TrainConfig,
    add_lora,
    collate,
    data_of,
    predictions,
    reference_logps,
    row_logps,
    train,
    unfreeze,
)


def naive(model: Model, row: Row) -> float:
    """Weighted log-probability of a row, alone and token by token."""
    with torch.no_grad():
        logp = model.hf(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    return sum(w * float(logp[i - 1, t]) for i, (t, w) in enumerate(zip(row.ids, row.weights, strict=True)) if i)


def test_next_token_is_the_weighted_mean() -> None:
    model, data = tiny(), rows_of(6)
    loss = NextToken()(model, collate(data, list(range(6)), model))
    rows = [example[0] for example in data.examples]
    expected = -sum(naive(model, row) for row in rows) / sum(sum(row.weights[1:]) for row in rows)
    assert float(loss.total / loss.weight) == pytest.approx(expected, abs=1e-5)


def test_logits_are_formed_from_the_first_weighted_token_on(make: Any) -> None:
    model, seen = make(), []
    model.hf.lm_head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    data = data_of([[Row(tuple(range(3, 13)), (0.0,) * 7 + (1.0,) * 3)]], context=24)
    assert len(predictions(model, collate(data, [0], model))[0]) == 3
    assert seen == [4]


def test_positions_of_an_edit_on_the_logits_count_from_the_rows_start() -> None:
    model = tiny()
    data = data_of([[Row(tuple(range(3, 13)), (0.0,) * 7 + (1.0,) * 3)]], context=24)
    plain = predictions(model, collate(data, [0], model))[0]
    with model.edited(Add("logits", torch.ones(48), positions=7)):
        edited = predictions(model, collate(data, [0], model))[0]
    # position 7 predicts token 8, the second of the three that carry weight
    assert torch.allclose(edited - plain, torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 48), atol=1e-5)


def test_dpo_is_the_published_formula() -> None:
    model, start, data = tiny(), tiny(1), rows_of(4, members=2)
    reference = reference_logps(start, data, batch=3)
    for place, example in enumerate(data.examples):
        assert reference[place].tolist() == pytest.approx([naive(start, row) for row in example], abs=1e-4)
    loss = DPO(reference, beta=0.3)(model, collate(data, [3, 1], model))
    margins = []
    for place in (3, 1):
        chosen, rejected = (naive(model, row) for row in data.examples[place])
        margins.append(0.3 * ((chosen - rejected) - float(reference[place, 0] - reference[place, 1])))
    expected = -functional.logsigmoid(torch.tensor(margins)).mean()
    assert float(loss.total / loss.weight) == pytest.approx(float(expected), abs=1e-5)
    assert float(loss.terms["margin"]) == pytest.approx(sum(margins), abs=1e-4)
    assert float(loss.terms["accuracy"]) == sum(margin > 0 for margin in margins)


@pytest.mark.parametrize("outputs", [None, (4, 9, 30)])
def test_distillation_is_kl_over_the_chosen_outputs(outputs: tuple[int, ...] | None) -> None:
    model, reference, data = tiny(), tiny(1), rows_of(3)
    loss = Distil(reference, outputs, share=0.5)(model, collate(data, [0, 1, 2], model))
    kept = list(outputs or range(48))
    expected = weight = 0.0
    for (row,) in data.examples:
        with torch.no_grad():
            p, q = (m.hf(torch.tensor([row.ids])).logits[0][:, kept].double() for m in (reference, model))
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        for i in range(1, len(row.ids)):
            expected += row.weights[i] * float((p[i - 1].exp() * (p[i - 1] - q[i - 1])).sum())
            weight += row.weights[i]
        expected -= 0.5 * naive(model, row)
    assert float(loss.total / loss.weight) == pytest.approx(expected / weight, abs=1e-5)
    with pytest.raises(UsageError, match="the reference is the model in training"):
        Distil(model)(model, collate(data, [0], model))


def test_rewards_weight_whole_rows() -> None:
    model = tiny()
    rows = [Row(e[0].ids, e[0].weights, reward=r) for e, r in zip(rows_of(3).examples, (1.0, -0.5, 0.25), strict=True)]
    data = data_of([[row] for row in rows], context=24)
    loss = RewardWeighted(baseline=0.25)(model, collate(data, [0, 1, 2], model))
    expected = -(0.75 * naive(model, rows[0]) - 0.75 * naive(model, rows[1])) / 3
    assert float(loss.total / loss.weight) == pytest.approx(expected, abs=1e-5)


def test_a_tagging_head_learns_what_a_token_is() -> None:
    model, draw = tiny(), torch.Generator().manual_seed(0)
    ids = torch.randint(3, 48, (24, 8), generator=draw).tolist()
    rows = [Row(tuple(i), (0.0,) * 8, labels=tuple(t % 2 if k else -100 for k, t in enumerate(i))) for i in ids]
    data = data_of([[row] for row in rows], context=24)
    head = torch.zeros(2, 16, requires_grad=True)
    done = train(
        model,
        data,
        TrainConfig(rate=0.1, steps=60, schedule="constant"),
        objective=Tagging(head, "resid_pre.0"),
        tensors={"head": head},
    )
    assert done.history[0].loss == pytest.approx(0.6931, abs=1e-3)
    assert done.history[-1].terms["accuracy"] > done.history[0].terms["accuracy"] + 0.2
    with pytest.raises(UsageError, match="rows with labels"):
        Tagging(head, "resid_pre.0")(model, collate(rows_of(1), [0], model))


def hugging_face(model: Model, data: Data, config: TrainConfig, folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step by Hugging Face's Trainer, rows in the order given."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    logged: list[dict[str, float]] = []
    losses: list[float] = []

    class Keep(TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append(dict(logs))

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            # what it logs is rounded
            losses.append(float(super().training_step(*args, **kwargs)))
            return torch.tensor(losses[-1])

    def pad(rows: list[Row]) -> dict[str, torch.Tensor]:
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([(*row.ids, *[0] * (width - len(row.ids))) for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        learnt = torch.tensor([[*map(bool, row.weights), *[False] * (width - len(row.ids))] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(learnt, ids, -100)}

    given = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.rate,
        lr_scheduler_type=str(config.schedule),
        warmup_steps=config.warm_up,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip or 0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    rows: Any = [example[0] for example in data.examples]
    InOrder(model.hf, given, data_collator=pad, train_dataset=rows, callbacks=[Keep()]).train()
    each = config.accumulate
    norms = [log["grad_norm"] for log in logged if "grad_norm" in log]
    return [(sum(losses[i * each : (i + 1) * each]), norm) for i, norm in enumerate(norms)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [False, True])
def test_three_steps_equal_hugging_faces_trainer(lora: bool, tmp_path: Path) -> None:
    plain = rows_of(12)
    # Hugging Face knows no weights between 0 and 1
    rows = [Row(e[0].ids, tuple(float(w > 0) for w in e[0].weights)) for e in plain.examples]
    data = data_of([[row] for row in rows], context=24)
    config = TrainConfig(
        rate=0.02, batch=2, accumulate=2, steps=3, warm_up=1, weight_decay=0.1, clip=0.5, shuffle=False, bucket=1,
        precision="float32",
    )  # fmt: skip
    ours, theirs = tiny(), tiny()
    if lora:
        ours, theirs = (
            add_lora(m, LoraSpec(modules=("down_proj", "q_proj"), rank=2, alpha=8.0)) for m in (ours, theirs)
        )
    else:
        unfreeze(ours)
        unfreeze(theirs)
    expected = hugging_face(theirs, data, config, tmp_path)
    steps = train(ours, data, config).history
    assert len(expected) == 3
    for step, (loss, norm) in zip(steps, expected, strict=True):
        assert step.loss == pytest.approx(loss, abs=1e-5)
        assert step.gradient == pytest.approx(norm, rel=1e-4)
    for (name, own), (_, other) in zip(ours.hf.named_parameters(), theirs.hf.named_parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-5), name


def test_accumulation_changes_nothing_but_memory() -> None:
    data = rows_of(8)
    weights = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = tiny()
        unfreeze(model)
        config = TrainConfig(rate=0.01, batch=batch, accumulate=accumulate, steps=2, bucket=1, precision="float32")
        done = train(model, data, config)
        weights.append((done.history[-1].loss, model.hf.lm_head.weight.detach().clone()))
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-5)
    assert torch.allclose(weights[0][1], weights[1][1], atol=1e-5)


def test_a_trained_vector_of_an_edit_lowers_the_loss_of_a_frozen_model() -> None:
    model, data = tiny(), rows_of(8)
    before = model.fingerprint
    vector = torch.zeros(16, requires_grad=True)
    config = TrainConfig(rate=0.05, steps=12, schedule="constant")
    done = train(model, data, config, edits=[Add("resid_post.0", vector)], tensors={"vector": vector})
    assert done.history[-1].loss < done.history[0].loss - 0.02
    assert model.fingerprint == before
    assert vector.detach().norm() > 0


def test_bad_objectives() -> None:
    model = tiny()
    with pytest.raises(UsageError, match=r"reference: \[example 2\]"):
        DPO(torch.zeros(3))
    with pytest.raises(UsageError, match="beta"):
        DPO(torch.zeros(3, 2), beta=0.0)
    with pytest.raises(UsageError, match="needs pairs"):
        DPO(torch.zeros(3, 2))(model, collate(rows_of(2), [0, 1], model))
    with pytest.raises(UsageError, match="the data has more"):
        DPO(torch.zeros(1, 2))(model, collate(rows_of(2, members=2), [0, 1], model))
    with pytest.raises(UsageError, match="outputs"):
        Distil(model, (4,))


def test_row_logps_keep_the_rows_apart() -> None:
    model, data = tiny(), rows_of(5)
    with torch.no_grad():
        together = row_logps(model, collate(data, list(range(5)), model))
    assert together.tolist() == pytest.approx([naive(model, e[0]) for e in data.examples], abs=1e-4)
