"""Features of a dictionary as records that other tools show: one call from model, dictionary and text.

1. Code ``tokens`` tokens of text. Only active latents are kept, about L0 numbers a token.
2. For each latent: the texts where its value is largest in size, how often it is active, a histogram of its values.
3. Where it writes to the residual stream: the tokens whose logits its atom raises and lowers most, read through the
   final norm's gain and the unembedding alone (exact in the last layer, a reading elsewhere).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.corpus import Corpus
from cutaway.features.dictionary import Dictionary, check_model
from cutaway.features.harvest import Context, site_names, stream
from cutaway.features.neuronpedia import Example, FeatureRecord
from cutaway.model import Model
from cutaway.model.sites import parse

_BARS = 20
_STREAM = {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@torch.no_grad()
def feature_records(
    model: Model,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    latents: Sequence[int] | None = None,
    site: str = "",
    source: str = "",
    tokens: int = 20_000,
    examples: int = 10,
    window: int = 24,
    top: int = 10,
    length: int = 128,
    batch: int = 16,
) -> tuple[FeatureRecord, ...]:
    """Return a record for each of ``latents`` (None: all), strongest texts first, for `write_neuronpedia`.

    ``window`` tokens are shown on either side of a text's strongest token, ``top`` tokens raised and lowered.
    UsageError for a latent that the dictionary has not, an unknown site, or a model of other weights.
    """
    wanted = range(dictionary.n_latents) if latents is None else latents
    if bad := [each for each in wanted if not 0 <= each < dictionary.n_latents]:
        raise UsageError(f"latent {bad[0]}: this dictionary has 0 to {dictionary.n_latents - 1}")
    if not site and not dictionary.provenance.site:
        raise UsageError("the dictionary does not say where it reads; pass site=")
    check_model(dictionary, model)
    (read,) = site_names(model, [site or dictionary.provenance.site])
    found = _Active(model, dictionary, corpus, read, tokens, length, batch)
    logits = _effects(model, dictionary, read, list(wanted), top)
    return tuple(
        FeatureRecord(
            model.name,
            source or f"{read}-cutaway",
            latent,
            examples=found.examples(latent, examples, window),
            density=found.share(latent),
            prompts=len(found.contexts),
            prompt_tokens=length,
            dataset=corpus.name,
            **found.histogram(latent),
            **logits[i],
        )
        for i, latent in enumerate(wanted)
    )


class _Active:
    """Every active latent of every token, sorted by latent."""

    def __init__(
        self, model: Model, dictionary: Dictionary, corpus: Corpus, site: str, tokens: int, length: int, batch: int
    ) -> None:
        self.model, self.contexts, self.rows = model, list[Context](), 0
        parts: list[tuple[Tensor, ...]] = []
        for rows in stream(model, corpus, site, tokens=tokens, length=length, batch=batch):
            codes = dictionary.encode(rows.values[site].float())
            row, slot = (codes.values != 0).nonzero(as_tuple=True)
            place = rows.context[row] + len(self.contexts), rows.position[row]
            parts.append((codes.indices[row, slot], codes.values[row, slot], *place))
            self.contexts += rows.contexts
            self.rows += len(rows)
        if not parts:
            raise UsageError(f"{corpus!r}: no token of text was read")
        latent, value, context, position = (torch.cat(column) for column in zip(*parts, strict=True))
        order = latent.argsort(stable=True)
        self._value, self._context, self._position = value[order], context[order], position[order]
        ends = torch.bincount(latent, minlength=dictionary.n_latents).cumsum(0).tolist()
        self._ends = [0, *ends]

    def share(self, latent: int) -> float:
        """Of tokens where the latent is active."""
        return (self._ends[latent + 1] - self._ends[latent]) / self.rows

    def histogram(self, latent: int) -> dict[str, Any]:
        """Bars of equal width over the latent's values: middle and number of each."""
        value, _, _ = self._of(latent)
        if not len(value):
            return {}
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        heights = torch.histc(value, _BARS, low, high)
        middles = low + (torch.arange(_BARS) + 0.5) * (high - low) / _BARS
        return {"histogram_values": tuple(middles.tolist()), "histogram_heights": tuple(heights.tolist())}

    def examples(self, latent: int, n: int, window: int) -> tuple[Example, ...]:
        """The texts with the largest values, one example each, in order of size; equal ones as they were read."""
        value, context, position = self._of(latent)
        best: dict[int, int] = {}
        for at in value.abs().argsort(descending=True, stable=True).tolist():
            best.setdefault(int(context[at]), int(position[at]))
            if len(best) == n:
                break
        made = []
        for number, peak in best.items():
            ids = self.contexts[number].ids
            first, last = max(0, peak - window), min(len(ids), peak + window + 1)
            here = context == number
            values = dict(zip(position[here].tolist(), value[here].tolist(), strict=True))
            shown = tuple(self.model.decode([token]) for token in ids[first:last])
            made.append(Example(shown, tuple(values.get(i, 0.0) for i in range(first, last))))
        return tuple(made)

    def _of(self, latent: int) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        part = slice(self._ends[latent], self._ends[latent + 1])
        return self._value[part], self._context[part], self._position[part]


def _effects(model: Model, dictionary: Dictionary, read: str, latents: list[int], top: int) -> list[dict[str, Any]]:
    """Return for each latent the tokens its atom raises and lowers most; nothing where it writes elsewhere."""
    atoms = dictionary.atoms.detach().float()[latents]
    place = parse(dictionary.provenance.target or read, model.layout)[0]
    if place.kind not in _STREAM or atoms.shape[1] != model.d_model:
        return [{} for _ in latents]
    decoder = model.layout.decoder
    norm = next((getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)), None)
    gain = getattr(norm, "weight", None)
    weight = model.hf.get_output_embeddings().weight.detach().float().cpu()
    found = []
    for atom in atoms if gain is None else atoms * gain.detach().float().cpu():
        effect = weight @ atom
        row: dict[str, Any] = {}
        for name, sign in (("positive", 1), ("negative", -1)):
            best = (sign * effect).topk(min(top, len(effect)))
            row[name] = tuple(model.decode([token]) for token in best.indices.tolist())
            row[f"{name}_values"] = tuple((sign * best.values).tolist())
        found.append(row)
    return found
