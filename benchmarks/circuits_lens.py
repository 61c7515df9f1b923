"""EAP-IG on transformer-lens, the way its users write it: hooks at split inputs, per-head results, one step at a time.

Weights are read into a HookedTransformer without folding, so that its edges are those of the Hugging Face model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

KINDS = ("hook_q_input", "hook_k_input", "hook_v_input")


class Lens:
    """A Llama model inside transformer-lens; scores have one row a writer, one column a reader, as the reference's."""

    def __init__(self, hf: Any) -> None:
        given = hf.config
        cfg = HookedTransformerConfig(
            n_layers=given.num_hidden_layers,
            d_model=given.hidden_size,
            n_heads=given.num_attention_heads,
            n_key_value_heads=given.num_key_value_heads,
            d_head=hf.model.layers[0].self_attn.head_dim,
            d_mlp=given.intermediate_size,
            d_vocab=given.vocab_size,
            n_ctx=512,
            act_fn="silu",
            normalization_type="RMS",
            final_rms=True,
            gated_mlp=True,
            eps=given.rms_norm_eps,
            positional_embedding_type="rotary",
            rotary_dim=hf.model.layers[0].self_attn.head_dim,
            rotary_base=given.rope_parameters["rope_theta"],
            rotary_adjacent_pairs=False,
            ungroup_grouped_query_attention=True,
            use_split_qkv_input=True,
            use_attn_result=True,
            use_hook_mlp_in=True,
            dtype=torch.float32,
            device="cpu",
        )
        self.model = HookedTransformer(cfg)
        state = convert_llama_weights(hf, cfg)
        state["unembed.W_U"] = hf.get_output_embeddings().weight.T
        self.model.load_state_dict(state, strict=False)
        self.model.requires_grad_(False)
        self.layers, self.heads = cfg.n_layers, cfg.n_heads

    def attribute(self, clean: Tensor, corrupted: Tensor, answer: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        """Return EAP-IG scores [writer reader]: steps 0/m to (m-1)/m, gradients of minus the answer."""
        n_writers = 1 + self.layers * (self.heads + 1)
        n_readers = self.layers * (3 * self.heads + 1) + 1
        difference = torch.zeros(clean.shape[1], n_writers, self.model.cfg.d_model)
        with torch.no_grad():
            for ids, sign in ((corrupted, 1.0), (clean, -1.0)):
                self.model.run_with_hooks(ids, fwd_hooks=self._writers(difference, sign))
            start, end = self.model.embed(corrupted), self.model.embed(clean)
        scores = torch.zeros(n_writers, n_readers)
        backward = self._readers(difference, scores)
        for step in range(steps):
            embed = (start + step / steps * (end - start)).requires_grad_()
            forward = [("hook_embed", lambda value, hook, embed=embed: embed)]
            with torch.enable_grad(), self.model.hooks(fwd_hooks=forward, bwd_hooks=backward):
                (-answer(self.model(clean)[:, -1]).sum()).backward()
        return scores / steps

    def _writers(self, difference: Tensor, sign: float) -> list[Any]:
        def add(value: Tensor, hook: Any, first: int) -> None:
            block = value[0] if value.ndim == 4 else value[0][:, None]
            difference[:, first : first + block.shape[1]] += sign * block

        hooks = [("hook_embed", partial(add, first=0))]
        for layer in range(self.layers):
            first = 1 + layer * (self.heads + 1)
            hooks.append((f"blocks.{layer}.attn.hook_result", partial(add, first=first)))
            hooks.append((f"blocks.{layer}.hook_mlp_out", partial(add, first=first + self.heads)))
        return hooks

    def _readers(self, difference: Tensor, scores: Tensor) -> list[Any]:
        def add(gradient: Tensor, hook: Any, before: int, first: int) -> None:
            block = gradient[0] if gradient.ndim == 4 else gradient[0][:, None]
            scores[:before, first : first + block.shape[1]] += torch.einsum(
                "pwd,prd->wr", difference[:, :before], block
            )

        hooks = []
        for layer in range(self.layers):
            before, first = 1 + layer * (self.heads + 1), layer * (3 * self.heads + 1)
            for number, kind in enumerate(KINDS):
                at = partial(add, before=before, first=first + number * self.heads)
                hooks.append((f"blocks.{layer}.{kind}", at))
            at = partial(add, before=before + self.heads, first=first + 3 * self.heads)
            hooks.append((f"blocks.{layer}.hook_mlp_in", at))
        last = f"blocks.{self.layers - 1}.hook_resid_post"
        return [*hooks, (last, partial(add, before=scores.shape[0], first=scores.shape[1] - 1))]
