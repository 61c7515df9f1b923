"""Forwards of one text with some keys hidden, each from where the hidden part ends, on the text's own keys and values.

Positions before a hidden span cannot change, and the span's own positions feed nothing, since nobody may look at them;
so a pass computes from the span's last position on. Several spans share a pass, a row each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.thought_anchors.nucleus import Divergence, Nucleus, Side, compare, read_side
from cutaway.sampling.kv import Trunk, grow_trunk

Span = tuple[int, int]
FLOOR = 1e-9
CHUNK = 128
"""Positions whose logits are held at once."""
STRETCH = 128
"""Queries that attend at once; keys later than all of them are left out."""
REACH = "cutaway_reach"


class _Prefixed(Cache):
    """The shared prefix's keys and values in front of every row's own; nothing is stored."""

    def __init__(self, trunk: Trunk, length: int) -> None:
        super().__init__(layers=[])
        self.trunk, self.length = trunk, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and new columns together."""
        keys, values = (side[layer_idx][None, :, : self.length] for side in (self.trunk.keys, self.trunk.values))
        rows = (len(key_states), -1, -1, -1)
        return torch.cat([keys.expand(rows), key_states], 2), torch.cat([values.expand(rows), value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions and masks are passed explicitly; nothing may be derived from this length."""
        return 0


def _reach_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Float[Tensor, "batch _ query key"],
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], None]:
    """The usual attention, a stretch of queries at a time, over the keys that the stretch can reach."""
    plain, earlier, parts = ALL_ATTENTION_FUNCTIONS["sdpa"], key.shape[2] - query.shape[2], []
    for at in range(0, query.shape[2], STRETCH):
        now, ahead = slice(at, at + STRETCH), min(earlier + at + STRETCH, key.shape[2])
        mask = attention_mask[:, :, now, :ahead]
        parts.append(plain(module, query[:, :, now], key[:, :, :ahead], value[:, :, :ahead], mask, **kwargs)[0])
    return torch.cat(parts, 1), None


AttentionInterface.register(REACH, _reach_attention)


@contextmanager
def _attending(config: Any) -> Iterator[None]:
    """Models with the 'sdpa' attention leave keys out of reach out; others work as they always do."""
    before = config._attn_implementation
    config._attn_implementation = REACH if before == "sdpa" else before
    try:
        yield
    finally:
        config._attn_implementation = before


class MaskedRuns:
    """The unmasked forward of one text, and masked runs against it.

    Logits ``lag`` before a token are compared for it; ``targets`` are the spans to compare over, counted from the
    text's first token, as ``sources`` are.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Model,
        ids: tuple[int, ...],
        targets: list[Span],
        nucleus: Nucleus,
        divergence: Divergence,
        lag: int,
    ) -> None:
        _check(model, ids)
        self.hf = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
        self.ids = torch.tensor([ids], device=model.device)
        self.lag = lag
        self.targets = [(max(a, self.lag), b) for a, b in targets]
        self.nucleus = nucleus
        self.divergence: Divergence = divergence
        self.trunk, _ = grow_trunk(self.hf, ids, None)
        # No source ends before the first target does, so no position before that is ever compared.
        self.first = targets[0][1] - self.lag if len(targets) > 1 else 0
        self.stop = self.targets[-1][1] - self.lag
        sides = [
            read_side(self._logits(self.trunk.hidden[at : min(at + CHUNK, self.stop)]), nucleus)
            for at in range(self.first, self.stop, CHUNK)
        ]
        joined = [torch.cat(parts) for parts in zip(*(vars(side).values() for side in sides), strict=True)]
        self.base = Side(*joined)

    @torch.inference_mode()
    def measure(self, sources: Sequence[Span]) -> tuple[Float[np.ndarray, "target source"], list[bool]]:
        """Cells of ``sources``, hidden each in its own row of one pass, and which of them went blind."""
        begin = min(end for _, end in sources) - 1
        masks, blind = self._masks(sources, begin)
        with _attending(self.hf.config.get_text_config()):
            hidden = self.hf.get_decoder()(
                input_ids=self.ids[:, begin : self.stop].expand(len(sources), -1),
                position_ids=torch.arange(begin, self.stop, device=self.ids.device)[None].expand(len(sources), -1),
                attention_mask=masks,
                past_key_values=_Prefixed(self.trunk, begin),
                use_cache=True,
            ).last_hidden_state
        out = np.full((len(self.targets), len(sources)), np.nan)
        for row, (_, end) in enumerate(sources):
            first = max(end - self.lag, self.first)
            if first >= self.stop:
                continue
            kl = np.log(self._compare(hidden[row, first - begin :], first) + FLOOR)
            for j, (a, b) in enumerate(self.targets):
                if a >= end:
                    out[j, row] = kl[a - self.lag - first : b - self.lag - first].mean()
        return out, blind

    def _compare(self, hidden: Float[Tensor, "pos d_model"], first: int) -> Float[np.ndarray, " pos"]:
        found = []
        for at in range(0, len(hidden), CHUNK):
            part = hidden[at : at + CHUNK]
            base = self.base.at(slice(first - self.first + at, first - self.first + at + len(part)))
            found.append(compare(base, self._logits(part), self.nucleus, self.divergence))
        return torch.cat(found).cpu().numpy()

    def _logits(self, hidden: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos vocab"]:
        logits: Tensor = self.hf.get_output_embeddings()(hidden).float()
        cap = getattr(self.hf.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _masks(self, sources: Sequence[Span], begin: int) -> tuple[Tensor | dict[str, Tensor], list[bool]]:
        """Additive masks over all keys so far, by layer kind where kinds differ; and which rows have a blind query."""
        config = self.hf.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        windows = {kind: window if kind == "sliding_attention" else None for kind in set(kinds or [])} or {"": window}
        keys = torch.arange(self.stop, device=self.ids.device)
        queries = keys[begin:, None]
        starts, ends = (torch.tensor(side, device=self.ids.device) for side in zip(*sources, strict=True))
        hidden = (keys >= starts[:, None]) & (keys < ends[:, None])
        itself = queries == keys
        masks: dict[str, Tensor] = {}
        blind = torch.zeros(len(sources), dtype=torch.bool, device=self.ids.device)
        for kind, width in windows.items():
            seen = keys <= queries if width is None else (keys <= queries) & (queries - keys < width)
            allowed = seen & ~hidden[:, None]
            lost = ~allowed.any(-1, keepdim=True)
            # Only a source's last position and what follows is ever read.
            blind |= (lost[:, :, 0] & (queries[:, 0] >= ends[:, None] - self.lag)).any(-1)
            least = torch.finfo(self.trunk.hidden.dtype).min
            mask = torch.zeros(allowed.shape, dtype=self.trunk.hidden.dtype, device=self.ids.device)
            masks[kind] = mask.masked_fill_(~(allowed | (lost & itself)), least)[:, None]
        return masks if kinds else masks[""], blind.tolist()


def _check(model: Model, ids: tuple[int, ...]) -> None:
    how = model.hf.config._attn_implementation
    if how not in ("sdpa", "eager"):
        raise UsageError(f"attention {how!r} takes no mask; load the model with 'sdpa'")
    if len(ids) > model.n_ctx:
        raise UsageError(f"{len(ids)} tokens exceed the context of {model.name} ({model.n_ctx}); shorten the trace")
    scaled = [name for name in ("logit_scale", "logits_scaling") if getattr(model.hf.config, name, None)]
    if scaled:
        raise UsageError(f"{model.name} has {scaled[0]}, so its logits are not what the unembedding gives")
