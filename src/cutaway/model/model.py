"""One language model: Hugging Face's own modules and numbers; text and token ids go in, tensors come out."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model.apply import edited as apply_edits
from cutaway.model.capture import Activations
from cutaway.model.capture import capture as run_capture
from cutaway.model.edits import Edit, Positions
from cutaway.model.families import Layout, resolve
from cutaway.model.partial import started

Rows = str | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """Rows of token ids. Padding may be on either side; real tokens of a row are contiguous."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """True at real tokens, False at padding."""

    def __len__(self) -> int:
        return self.ids.shape[0]

    def forward_kwargs(self) -> dict[str, Tensor]:
        """Return the arguments a Hugging Face model takes for these rows."""
        if bool(self.mask.all()):
            return {"input_ids": self.ids}
        kwargs = {"input_ids": self.ids, "attention_mask": self.mask.long()}
        if not bool(self.mask[:, 0].all()):
            kwargs["position_ids"] = (self.mask.long().cumsum(-1) - 1).clamp(min=0)
        return kwargs


class Model:
    """A Hugging Face causal LM with its tokenizer, addressed by sites and changed by edits.

    The wrapped model is ``.hf``; it is put in eval mode and otherwise left as it is.
    """

    def __init__(self, hf: Any, tokenizer: Any, name: str, spec: str | None = None) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.spec = spec
        config = hf.config.get_text_config()
        self.n_layers: int = config.num_hidden_layers
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.vocab_size: int = config.vocab_size
        self.n_ctx: int = config.max_position_embeddings
        self._fingerprints: dict[tuple[str, ...], tuple[tuple[tuple[Any, ...], ...], str]] = {}

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.n_layers} layers, {self.n_heads} heads, d_model {self.d_model},"
            f" {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @cached_property
    def layout(self) -> Layout:
        """Where the sites are; UsageError for a model whose blocks have no known shape."""
        return resolve(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def copy(self) -> "Model":
        """A model with weights of its own, equal to these; which of them train is copied too."""
        return Model(copy.deepcopy(self.hf), self.tokenizer, self.name, self.spec)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the state dict: names, dtypes, shapes, bytes. Computed again once a weight changed."""
        return fingerprint_of(self, self.hf.state_dict(keep_vars=True))

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a text, by the generation config and the tokenizer."""
        declared = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        ids = [declared] if isinstance(declared, int) else list(declared or [])
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return frozenset(ids)

    @property
    def special_ids(self) -> frozenset[int]:
        """Token ids that carry structure, not text."""
        return frozenset() if self.tokenizer is None else frozenset(self.tokenizer.all_special_ids)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids of ``text``; ``special`` lets the tokenizer add its start and end tokens."""
        return list(self._tokenizer()(text, add_special_tokens=special)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the exact text of ``ids``, special tokens included."""
        return str(self._tokenizer().decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def chat_ids(self, prompt: str, system: str | None = None) -> list[int]:
        """Return the ids of one user turn under the model's chat template, up to where its answer starts."""
        tokenizer = self._tokenizer()
        if tokenizer.chat_template is None:
            raise UsageError(f"model {self.name!r} has no chat template; pass the prompt as it is with `raw`")
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": prompt})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)

    def batch(self, rows: Rows) -> Batch:
        """Return ``rows`` (texts, or token ids) as one batch, padded on the right.

        >>> model.batch([[5, 6, 7], [8]]).mask.tolist()  # doctest: +SKIP
        [[True, True, True], [True, False, False]]
        """
        texts = [rows] if isinstance(rows, str) else rows
        ids = [self.encode(row, special=True) if isinstance(row, str) else list(row) for row in texts]
        if not ids or not all(ids):
            raise UsageError("a batch needs at least one row and a token in every row")
        bad = next((token for row in ids for token in row if not 0 <= token < self.vocab_size), None)
        if bad is not None:
            raise UsageError(f"token id {bad} is outside the vocabulary 0..{self.vocab_size - 1}")
        width = max(map(len, ids))
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        padded = torch.tensor([row + [self._pad] * (width - len(row)) for row in ids], device=self.device)
        return Batch(padded, torch.arange(width, device=self.device) < lengths[:, None])

    def logits(self, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
        """Return the model's logits, bit for bit those of Hugging Face where nothing is edited."""
        output: Tensor = self.hf(**batch.forward_kwargs(), use_cache=False).logits
        return output

    def capture(
        self,
        batch: Batch | Rows,
        sites: str | Sequence[str],
        positions: Positions = None,
        *,
        special: bool = False,
    ) -> Activations:
        """Return the tensors of ``sites`` from one forward, which ends after the last layer needed.

        ``positions`` are counted in each row without its padding: None for all, an int, several ints, a
        slice, or "last"; negative ones count from the row's end. The pos axis stays, also for one position.
        The result's mask leaves out padding and, unless ``special``, special tokens; positions named one by
        one are always in it.
        Gradients are kept where grad mode is on. Inside `edited`, the values are the edited ones.

        Raises UsageError for a site, layer, head or position that the model or a row does not have.
        """
        rows = batch if isinstance(batch, Batch) else self.batch(batch)
        skipped = frozenset() if special else self.special_ids
        return run_capture(self.layout, rows, sites, positions, skipped)

    @contextmanager
    def edited(self, *edits: Edit) -> "Iterator[Model]":
        """Apply ``edits``, in order, to every forward inside the block: plain, batched, generating, training.

        Raises UsageError on entry for an edit that does not fit; EditError on exit for one that had no effect
        (not when the block itself raised). All hooks are gone afterwards.
        """
        with apply_edits(self.layout, edits):
            yield self

    @contextmanager
    def started(self, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> "Iterator[Model]":
        """Let every forward inside the block begin at block ``layer``, on ``resid`` (a captured ``resid_pre``).

        The blocks below are not computed, so the forward costs the share of those that remain. Token ids are
        still given, of the same rows and length: masks and positions come from them.
        """
        with started(self.layout, layer, resid):
            yield self

    @property
    def _pad(self) -> int:
        pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.eos_ids, default=0)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise UsageError(f"model {self.name!r} has no tokenizer; pass token ids")
        return self.tokenizer


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    # A fused optimiser writes without counting versions, so one entry is looked at as well.
    middle = tensor.detach().reshape(-1)[tensor.numel() // 2].item() if tensor.numel() else None
    return tensor.data_ptr(), tensor._version, middle


def fingerprint_of(model: Model, state: dict[str, Tensor]) -> str:
    """Return the fingerprint of some of the model's own tensors, by any name; kept until one of them changes."""
    names, stamp = tuple(state), tuple(_stamp(tensor) for tensor in state.values())
    if names not in model._fingerprints or model._fingerprints[names][0] != stamp:
        model._fingerprints[names] = (stamp, hash_state(state))
    return model._fingerprints[names][1]


def hash_state(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of a state dict."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
