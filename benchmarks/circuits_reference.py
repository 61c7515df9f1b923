"""The published edge attribution and circuit run, written plainly, as a baseline and a second implementation.

Written from the description of EAP-IG and query circuits for Llama-shaped Hugging Face models:

- every head has inputs of its own for query, key and value ([batch pos head d_model]; shared keys and values expanded);
- every head's output is projected to d_model, and all writers are held as one tensor [batch pos writer d_model];
- integrated gradients go one step at a time; each step multiplies writers by the gradients of every reader;
- one circuit is one patched forward, and its corrupted forward is run again each time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Answer = Any
"""Maps the logits of the last token [batch vocab] to one number for each row."""


@dataclass
class Forward:
    """One forward: what writers wrote and what readers received, layer by layer, and the last token's logits."""

    writers: list[Tensor]
    """[batch pos d_model] each."""
    inputs: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    """Of each layer: query, key, value inputs [batch pos head d_model], MLP input [batch pos d_model]."""
    last: Tensor
    """What the logits read."""
    logits: Tensor


class Reference:
    """A Llama model as writers and readers."""

    def __init__(self, hf: Any) -> None:
        self.hf, self.layers = hf, hf.model.layers
        self.heads, self.kv = hf.config.num_attention_heads, hf.config.num_key_value_heads
        self.d_head = self.layers[0].self_attn.head_dim

    def forward(
        self, ids: Tensor, *, embed: Tensor | None = None, cut: Tensor | None = None, other: Any = None
    ) -> Forward:
        """Run the model; with ``cut`` [writer reader], cut edges carry ``other`` [batch pos writer d_model]."""
        embed = self.hf.model.embed_tokens(ids) if embed is None else embed
        positions = torch.arange(ids.shape[1])[None]
        rotary = self.hf.model.rotary_emb(embed, positions)
        writers, inputs, resid = [embed], [], embed
        for number, layer in enumerate(self.layers):
            first = number * (3 * self.heads + 1)
            parts = []
            for kind in range(3):
                readers = slice(first + kind * self.heads, first + (kind + 1) * self.heads)
                received = resid[:, :, None].repeat(1, 1, self.heads, 1)
                parts.append(received + self._missing(writers, readers, cut, other))
            heads = self._attention(layer, parts, rotary)
            writers += list(heads.unbind(2))
            bias = layer.self_attn.o_proj.bias  # belongs to no head and to no edge
            resid = resid + heads.sum(2) + (0.0 if bias is None else bias)
            mlp_reader = slice(first + 3 * self.heads, first + 3 * self.heads + 1)
            missing = self._missing(writers, mlp_reader, cut, other)
            mlp_in = resid + (missing[:, :, 0] if torch.is_tensor(missing) else missing)
            wrote = layer.mlp(layer.post_attention_layernorm(mlp_in))
            writers.append(wrote)
            resid = resid + wrote
            inputs.append((*parts, mlp_in))
        missing = self._missing(writers, slice(-1, None), cut, other)
        last = resid + (missing[:, :, 0] if torch.is_tensor(missing) else missing)
        logits = self.hf.lm_head(self.hf.model.norm(last[:, -1]))
        return Forward(writers, inputs, last, logits)

    def _missing(self, writers: list[Tensor], readers: slice, cut: Tensor | None, other: Any) -> Any:
        """Return what readers lack: cut edges carry ``other`` instead of what was written now."""
        if cut is None:
            return 0.0
        difference = other[:, :, : len(writers)] - torch.stack(writers, 2)
        return torch.einsum("bpwd,wr->bprd", difference, cut[: len(writers), readers])

    def _attention(self, layer: Any, inputs: list[Tensor], rotary: Any) -> Tensor:
        """Return each head's output, projected to d_model: [batch pos head d_model]."""
        attn = layer.self_attn
        group = self.heads // self.kv
        q, k, v = (
            self._project(layer.input_layernorm(received), module, 1 if kind == 0 else group)
            for kind, (received, module) in enumerate(zip(inputs, (attn.q_proj, attn.k_proj, attn.v_proj), strict=True))
        )
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        scores = q @ k.transpose(-1, -2) * self.d_head**-0.5
        length = q.shape[-2]
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        z = scores.softmax(-1) @ v
        w_o = attn.o_proj.weight.T.unflatten(0, (self.heads, -1))
        return torch.einsum("bhpe,hed->bphd", z, w_o)

    def _project(self, received: Tensor, module: Any, repeats: int) -> Tensor:
        """Return [batch head pos d_head], each head's from what it received itself."""
        weight = module.weight.unflatten(0, (-1, self.d_head)).repeat_interleave(repeats, 0)
        projected = torch.einsum("bphd,hed->bhpe", received, weight)
        if module.bias is None:
            return projected
        return projected + module.bias.unflatten(0, (-1, self.d_head)).repeat_interleave(repeats, 0)[:, None]

    def writers(self, ids: Tensor) -> Tensor:
        """Return what every writer writes: [batch pos writer d_model]."""
        with torch.no_grad():
            return torch.stack(self.forward(ids).writers, 2)

    def attribute(self, clean: Tensor, corrupted: Tensor, answer: Answer, steps: int) -> Tensor:
        """Return EAP-IG scores [writer reader] of one pair: steps 0/m to (m-1)/m, gradients of minus the answer."""
        other, now = self.writers(corrupted), self.writers(clean)
        difference = other - now
        n_readers = len(self.layers) * (3 * self.heads + 1) + 1
        scores = torch.zeros(difference.shape[2], n_readers)
        for step in range(steps):
            embed = (other[:, :, 0] + step / steps * (now[:, :, 0] - other[:, :, 0])).requires_grad_()
            with torch.enable_grad():
                run = self.forward(clean, embed=embed)
                loss = -answer(run.logits).sum()
                wanted = [tensor for layer in run.inputs for tensor in layer] + [run.last]
                gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
            reader = 0
            for place, gradient in enumerate(gradients):
                block = gradient if gradient.ndim == 4 else gradient[:, :, None]
                layer, kind = divmod(place, 4)
                before = 1 + layer * (self.heads + 1) + (self.heads if kind == 3 else 0)
                stop = reader + block.shape[2]
                scores[:before, reader:stop] += torch.einsum("bpwd,bprd->wr", difference[:, :, :before], block)
                reader = stop
        return scores / steps

    def circuit(self, clean: Tensor, corrupted: Tensor, keep: Tensor) -> Tensor:
        """Return the last token's logits of the circuit of the edges in ``keep`` [writer reader]: two forwards."""
        with torch.no_grad():
            return self.forward(clean, cut=1.0 - keep.float(), other=self.writers(corrupted)).logits
