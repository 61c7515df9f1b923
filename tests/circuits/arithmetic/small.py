"""Models that the tests of both cards take apart."""

import functools
from pathlib import Path

import numpy as np
import torch

from cutaway.circuits.arithmetic import Format, Questions, join, per_class
from cutaway.circuits.arithmetic.store import Stored, open_folder
from cutaway.model import Model

DATA = Path(__file__).parents[3] / "data" / "arithmetic"


@functools.cache
def stored(name: str) -> Stored:
    """A trained model from the data folder: one-layer or two-layer."""
    return open_folder(DATA / name)


def varied(form: Format, n: int, seed: int) -> Questions:
    """``n`` additions of every class."""
    return join(list(per_class(form, n, seed).values()))


def permuted_heads(model: Model, layer: int, order: list[int]) -> Model:
    """The same function with a layer's heads in another order: new head ``i`` is old head ``order[i]``."""
    import copy

    hf = copy.deepcopy(model.hf)
    attention = hf.transformer.h[layer].attn
    d_head, d_model = model.d_head, model.d_model
    places = np.concatenate([np.arange(h * d_head, (h + 1) * d_head) for h in order])
    with torch.no_grad():
        every = torch.from_numpy(np.concatenate([part * d_model + places for part in range(3)]))
        attention.c_attn.weight.copy_(attention.c_attn.weight[:, every].clone())
        attention.c_attn.bias.copy_(attention.c_attn.bias[every].clone())
        attention.c_proj.weight.copy_(attention.c_proj.weight[torch.from_numpy(places)].clone())
    return Model(hf, model.tokenizer, f"{model.name}-permuted")
