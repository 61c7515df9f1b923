"""A network in which one known neuron per layer carries a concept and one known idle neuron can take over.

Words have a category each; a category is a direction of the embedding, one of them the concept's, and words of the
``near`` category share part of it. In every layer

- the *carrier* fires at words of the concept and writes the tag's direction, which the head reads;
- the *idle* neuron fires at words of the near category, writes nothing, and is the only one that can be trained;
- the others fire at other categories and write nothing.

There is no attention. Once the carriers are pruned, the concept can only come back through the idle neurons: a tracker
that names another is wrong. The null is retraining without the concept, from which nothing may come back.

Source: card relearn-concepts, At small scale.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaMLP

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import blank_llama, norm_gain, word_tokenizer
from cutaway.training import Data, Row, data_of

CATEGORIES = ("town", "river", "tool", "fruit")
"""The first is the concept, the second the near one."""
LABELS = ("O", "TOWN")
_EACH, _NEAR, _BASE = 8, 0.5, 4.0
_TAG, _CONST, _NOISE = len(CATEGORIES), len(CATEGORIES) + 1, 10


@dataclass(frozen=True)
class TakeoverTruth:
    """What a tracker should find."""

    carriers: dict[int, tuple[int, ...]]
    """By layer: the neuron to prune."""
    idle: dict[int, int]
    """By layer: the only neuron that can take over."""


@dataclass(frozen=True)
class Takeover:
    """The network, its head and words to tag."""

    model: Model
    head: Float[Tensor, "label d_model"]
    truth: TakeoverTruth

    def data(self, n: int, *, concept: bool = True, seed: int = 0) -> Data:
        """Return ``n`` rows of eight words, labelled; without ``concept`` no word is of it."""
        rng = np.random.default_rng(seed)
        rows = []
        for _ in range(n):
            kinds = rng.integers(0 if concept else 1, len(CATEGORIES), 8)
            ids = tuple(int(3 + kind * _EACH + rng.integers(_EACH)) for kind in kinds)
            rows.append((Row(ids, (0.0,) * 8, tuple(int(kind == 0) for kind in kinds)),))
        return data_of(rows, context=self.model.n_ctx)

    def free_idle(self, model: Model) -> None:
        """Let the idle neurons of ``model``, a copy of this one, train: what drives them, what they add to the tag."""
        model.hf.requires_grad_(False)
        for layer, index in self.truth.idle.items():
            mlp = model.layout.blocks[layer].mlp
            assert isinstance(mlp, LlamaMLP)
            up, down = torch.zeros_like(mlp.up_proj.weight), torch.zeros_like(mlp.down_proj.weight)
            up[index], down[_TAG, index] = 1.0, 1.0
            for weight, only in ((mlp.up_proj.weight, up), (mlp.down_proj.weight, down)):
                weight.requires_grad_(True)
                weight.register_hook(lambda gradient, only=only: gradient * only)


def takeover(*, layers: int = 2, neurons: int = 8, seed: int = 0) -> Takeover:
    """Build the network; ``seed`` draws which neuron has which part. UsageError for fewer than 4 neurons."""
    if layers < 1 or neurons < len(CATEGORIES):
        raise UsageError(f"layers={layers}, neurons={neurons}: 1 or more, and {len(CATEGORIES)} or more")
    words = tuple(f" {category}{i}" for category in CATEGORIES for i in range(_EACH))
    tokenizer = word_tokenizer(words)
    hf = blank_llama(tokenizer, d_model=_CONST + 1 + _NOISE, n_layers=layers, n_heads=1, d_head=16, n_ctx=16)
    rng = np.random.default_rng(seed)
    hf.config.intermediate_size = neurons
    carriers: dict[int, tuple[int, ...]] = {}
    idle: dict[int, int] = {}
    with torch.no_grad():
        _embed(hf.model.embed_tokens.weight, rng)
        norm_gain(hf.model.norm, _BASE**2)
        for layer, block in enumerate(hf.model.layers):
            norm_gain(block.post_attention_layernorm, _BASE**2)
            block.mlp = LlamaMLP(hf.config)
            for weight in block.mlp.parameters():
                weight.zero_()
            order = [int(i) for i in rng.permutation(neurons)]
            carriers[layer], idle[layer] = (order[0],), order[1]
            block.mlp.gate_proj.weight[:, _CONST] = 1.0
            for place, neuron in enumerate(order):
                block.mlp.up_proj.weight[neuron, place % len(CATEGORIES)] = 1.0
                block.mlp.up_proj.weight[neuron, _CONST + 1 :] = torch.from_numpy(0.1 * rng.normal(size=_NOISE))
            # what the near words share with the concept is taken off again, so that the carrier fires at it alone
            block.mlp.up_proj.weight[order[0], 1] = -_NEAR
            block.mlp.down_proj.weight[_TAG, order[0]] = 1.0
    model = Model(hf.eval(), tokenizer, f"planted-takeover-{seed}")
    head = torch.zeros(len(LABELS), model.d_model)
    head[1, _TAG], head[0, _CONST] = 1.0, 0.25
    return Takeover(model, head, TakeoverTruth(carriers, idle))


def _embed(weight: Tensor, rng: np.random.Generator) -> None:
    noise = torch.from_numpy(rng.normal(size=(len(CATEGORIES) * _EACH, _NOISE)))
    for place in range(len(CATEGORIES) * _EACH):
        row = weight[3 + place]
        row[_CONST], row[place // _EACH] = _BASE, 1.0
        row[0] += _NEAR if place // _EACH == 1 else 0.0
        row[_CONST + 1 :] = 0.3 * noise[place].to(row)
