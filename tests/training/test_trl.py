"""Preference optimisation against TRL's trainer, in an interpreter of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_data import tiny

from cutaway.training import DPO, Row, TrainConfig, data_of, reference_logps, train, unfreeze

OTHER = os.environ.get("CUTAWAY_TRL", "")
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from datasets import Dataset
from safetensors.torch import save_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

folder = Path(sys.argv[1])
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(48)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
losses = []

class InOrder(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        losses.append(float(super().training_step(*args, **kwargs)))
        return torch.tensor(losses[-1])

given = DPOConfig(
    output_dir=str(folder / "runs"), max_steps=3, per_device_train_batch_size=2, learning_rate=0.01, beta=0.2,
    lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, save_strategy="no", report_to=[], use_cpu=True,
    bf16=False, gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False,
)
model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
rows = Dataset.from_list(json.loads((folder / "rows.json").read_text()))
trainer = InOrder(model, args=given, train_dataset=rows, processing_class=tokenizer)
trainer.train()
(folder / "losses.json").write_text(json.dumps(losses))
save_model(trainer.model, folder / "after.safetensors")
"""


@pytest.mark.slow
def test_three_steps_of_dpo_equal_trl(tmp_path: Path) -> None:
    """Starts another interpreter that imports TRL."""
    if not OTHER:
        pytest.skip("CUTAWAY_TRL names no interpreter; set it to a Python that has trl")
    draw = torch.Generator().manual_seed(0)

    def words(n: int) -> list[int]:
        return torch.randint(3, 48, (n,), generator=draw).tolist()

    pairs = [{"prompt_ids": words(4 + i), "chosen_ids": words(6), "rejected_ids": words(3 + i)} for i in range(6)]
    examples = [
        [Row((*p["prompt_ids"], *p[end]), (*[0.0] * len(p["prompt_ids"]), *[1.0] * len(p[end]))) for end in
         ("chosen_ids", "rejected_ids")]
        for p in pairs
    ]  # fmt: skip
    data, model = data_of(examples, context=24), tiny()
    model.hf.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps(pairs))
    done = subprocess.run(
        [OTHER, "-W", "ignore", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    unfreeze(model)
    config = TrainConfig(
        rate=0.01, batch=2, steps=3, schedule="constant", weight_decay=0.0, clip=None, shuffle=False, bucket=1
    )
    steps = train(model, data, config, objective=DPO(reference_logps(model, data), beta=0.2)).history
    expected = json.loads((tmp_path / "losses.json").read_text())
    assert [step.loss for step in steps] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[2] - expected[0]) > 1e-3
    after = load_file(tmp_path / "after.safetensors")
    own = dict(model.hf.named_parameters())
    assert set(after) <= set(own)
    for name, theirs in after.items():
        assert torch.allclose(own[name], theirs, atol=1e-5), name
