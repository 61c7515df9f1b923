"""Three steps of a tiny model in this process of an Accelerate launch; the main one writes the losses and weights."""

import sys

import torch
from accelerate import Accelerator
from training_data import rows_of, tiny

from cutaway.training import LoraSpec, TrainConfig, add_lora, train

CONFIG = TrainConfig(rate=1e-2, batch=2, accumulate=4, steps=3, precision="float32", weights_every=3)


def run(folder: str, accelerator: Accelerator | None = None) -> list[float]:
    model = add_lora(tiny(), LoraSpec(("down_proj",), rank=2))
    return [step.loss for step in train(model, rows_of(12), CONFIG, folder=folder, accelerator=accelerator).history]


if __name__ == "__main__":
    own = Accelerator(cpu=True)
    losses = run(sys.argv[1], own)
    if own.is_main_process:
        torch.save(torch.tensor(losses), sys.argv[2])
    own.end_training()
