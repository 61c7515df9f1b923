"""Rewrite the MLP rows that write a concept's features, so that they write against it. Nothing is trained.

Row w_i [d_model] is what neuron i of layer l writes (`written`). A dictionary reads that layer's MLP output; feature f
has encoder row e_f and atom d_f.

1. Candidates: features whose atom, read by the unembedding, has concept tokens among the k most (least) favoured.
2. Rows: a_i = w_i . e_f; those with |a_i| > tau max_j |a_j|.
3. Edit: p = encode(w_i); p_f becomes mu A s m_i with A = max over the layer's features and neurons of |a_j|, s = -1 for
   features that favour the concept and +1 for those that disfavour it, m_i the sign with which neuron i mostly fires at
   the concept (`signs`). The row becomes decode(p) + (w_i - decode(p_old)): for a linear decoder w_i + (new - old) d_f,
   so only column f of the decoder is ever multiplied, and an unchanged p leaves the row bit-identical.
4. The edit is data: rows before and after. Apply it for a block (`applied`), to a copy (`rewritten`), save it, undo it.

Plain and gated MLPs alike; no norm is folded, so the edited model is an ordinary checkpoint. Families with a norm
behind the MLP are refused. Source: Gur-Arieh et al. 2025, arXiv:2505.22586; card pisces. Traps of the released code
avoided: harmonic means keep zeros, sign counts stream, the edit can be exported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.editing.rows import Edit, Feature, RowEdit
from cutaway.editing.weights import written
from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.model import Model

Dictionaries = Mapping[int, SparseDictionary]
"""By layer; each reads that layer's MLP output."""


@torch.no_grad()
def candidates(
    model: Model, dictionaries: Dictionaries, words: Mapping[int, str], *, top: int = 10
) -> tuple[Feature, ...]:
    """Return features with concept tokens (id to word) among the ``top`` most or least favoured tokens.

    A feature with both ends is counted where it has more of them. UsageError for a dictionary that does not fit.
    """
    if not words:
        raise UsageError("no concept tokens; give at least one, see single_tokens")
    head = model.hf.get_output_embeddings().weight.detach().float()
    norm = getattr(model.layout.decoder, "norm", None) or getattr(model.layout.decoder, "ln_f", None)
    gain = 1.0 if norm is None else norm.weight.detach().float()
    found = []
    for layer, dictionary in dictionaries.items():
        check(model, layer, dictionary)
        for start in range(0, dictionary.n_latents, 512):
            seen = (dictionary.atoms[start : start + 512].float() * gain) @ head.T
            ends = [seen.topk(top, dim=-1, largest=largest).indices.tolist() for largest in (True, False)]
            for i, (high, low) in enumerate(zip(*ends, strict=True)):
                hits = [tuple(words[t] for t in end if t in words) for end in (high, low)]
                if hits[0] or hits[1]:
                    favours = len(hits[0]) >= len(hits[1])
                    found.append(Feature(layer, start + i, favours, hits[0 if favours else 1]))
    return tuple(found)


@torch.no_grad()
def signs(
    model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int], tokens: Sequence[int], batch: int = 32
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """Return the sign (+1 or -1; +1 for a draw) with which each neuron mostly fires where the next token is one of
    ``tokens``: two counts a neuron, however long the text. UsageError where none of them stands in ``rows``.
    """
    wanted = torch.tensor(sorted(tokens), device=model.device)
    counts = {layer: torch.zeros(model.layout.dims("neurons")[0], device=model.device) for layer in layers}
    seen = 0
    for start in range(0, len(rows), batch):
        given = model.batch([list(row) for row in rows[start : start + batch]])
        at = torch.isin(given.ids[:, 1:], wanted) & given.mask[:, 1:]
        if not bool(at.any()):
            continue
        seen += int(at.sum())
        found = model.capture(given, [f"neurons.{layer}" for layer in layers], special=True)
        for layer in layers:
            counts[layer] += found[f"neurons.{layer}"][:, :-1][at].sign().sum(0)
    if not seen:
        raise UsageError("no concept token stands in these rows; signs need text that has them")
    return {layer: torch.where(count >= 0, 1.0, -1.0) for layer, count in counts.items()}


@torch.no_grad()
def make_edit(
    model: Model,
    dictionaries: Dictionaries,
    features: Sequence[Feature],
    *,
    tau: float,
    mu: float,
    signs: Mapping[int, Tensor] | None = None,
) -> Edit:
    """Return the edit that silences ``features``; the model is not touched.

    ``tau`` above 1 selects no neuron. UsageError for no features, or a dictionary of other layer, site or width.
    """
    if not features:
        raise UsageError("no features chosen; see candidates")
    if not (tau > 0 and mu >= 0):
        raise UsageError(f"tau={tau}, mu={mu}: above 0, and 0 or more")
    made, cost, reference = [], 0, 0
    for layer in sorted({each.layer for each in features}):
        if layer not in dictionaries:
            raise UsageError(f"feature of layer {layer}: no dictionary of that layer was given")
        dictionary = dictionaries[layer]
        check(model, layer, dictionary)
        own = [each for each in features if each.layer == layer]
        row, used = _layer_edit(
            written(model, layer), dictionary, own, tau, mu, None if signs is None else signs[layer]
        )
        cost += used
        reference += 2 * model.layout.dims("neurons")[0] * dictionary.n_latents * model.d_model
        if len(row[0]):
            made.append(RowEdit(layer, *row))
    return Edit(tuple(made), tuple(features), tau, mu, cost, reference)


def _layer_edit(
    rows: Tensor, dictionary: SparseDictionary, own: Sequence[Feature], tau: float, mu: float, sign: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Return (neurons, before, after) of one layer and the multiplications made."""
    index = torch.tensor([each.index for each in own], device=rows.device)
    scale = dictionary.scale if dictionary.normaliser == "scale" else 1.0
    reads = rows.float() * scale @ dictionary.w_enc[index].T.to(rows.device, torch.float32)
    strength = reads.abs().amax(0)
    selected = reads.abs() > tau * strength
    neurons = selected.any(1).nonzero()[:, 0]
    before = rows[neurons].clone()
    if not len(neurons):
        return (neurons, before, before.clone()), reads.numel() * rows.shape[1]
    target = mu * float(strength.max()) * torch.tensor([-1.0 if f.favours else 1.0 for f in own], device=rows.device)
    wanted = target.expand(len(neurons), -1) * (1.0 if sign is None else sign[neurons].to(rows.device)[:, None])
    held = dictionary.encode(before.float()).dense()[:, index]
    change = (wanted - held) * selected[neurons]
    after = before + (change @ dictionary.atoms[index].float()).to(before.dtype)
    encoded = len(neurons) * dictionary.n_latents
    return (neurons, before, after), (reads.numel() + encoded + change.numel()) * rows.shape[1]


def random_control(edit: Edit, dictionaries: Dictionaries, *, seed: int = 0) -> Edit:
    """Return an edit of the same rows, each changed by as much, along features drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for each in edit.rows:
        dictionary = dictionaries[each.layer]
        chosen = {feature.index for feature in edit.features if feature.layer == each.layer}
        free = torch.tensor([i for i in range(dictionary.n_latents) if i not in chosen])
        if not len(free):
            raise UsageError(f"layer {each.layer}: every feature is chosen, none is left for a control")
        drawn = free[torch.randint(len(free), (len(each.neurons),), generator=generator)]
        atoms = dictionary.atoms.detach()[drawn.to(each.before.device)].float()
        flips = torch.randint(2, (len(drawn), 1), generator=generator).to(atoms) * 2 - 1
        length = (each.after - each.before).float().norm(dim=-1, keepdim=True)
        change = flips * atoms / atoms.norm(dim=-1, keepdim=True) * length
        rows.append(RowEdit(each.layer, each.neurons, each.before, each.before + change.to(each.before.dtype)))
    return Edit(tuple(rows), edit.features, edit.tau, edit.mu, edit.multiplications, edit.reference)


def shuffled_control(edit: Edit, *, seed: int = 0) -> Edit:
    """Return the same edit with each row's change given a random sign."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for each in edit.rows:
        flips = torch.randint(2, (len(each.neurons), 1), generator=generator) * 2 - 1
        after = each.before + flips.to(each.before) * (each.after - each.before)
        rows.append(RowEdit(each.layer, each.neurons, each.before, after))
    return Edit(tuple(rows), edit.features, edit.tau, edit.mu, edit.multiplications, edit.reference)


def check(model: Model, layer: int, dictionary: SparseDictionary) -> None:
    """UsageError for a dictionary that does not read this model's MLP output at ``layer``."""
    site, wanted = dictionary.provenance.site, f"mlp_out.{layer}"
    if site and site != wanted:
        raise UsageError(f"a dictionary of {site} given for layer {layer}; it has to read {wanted}")
    if dictionary.d_in != model.d_model or dictionary.d_out != model.d_model:
        raise UsageError(f"a dictionary from {dictionary.d_in} to {dictionary.d_out}; {wanted} has {model.d_model}")
    if dictionary.normaliser == "layer_norm" or dictionary.w_skip is not None:
        raise UsageError("a dictionary with a norm of each row, or a skip connection, does not read rows of weights")
    written(model, layer)


def word_dictionary(
    model: Model, layer: int, words: Sequence[int], *, others: int = 200, seed: int = 0
) -> SparseDictionary:
    """Return a dictionary without training: its atoms are the unembedding's directions of ``words`` and other tokens.

    The atoms are unit vectors seen through the final norm's gain, and the encoder is their pseudo-inverse: reading one
    is not reading its neighbours. At most d_model / 2 atoms, so that this is well defined.
    """
    head = model.hf.get_output_embeddings().weight.detach().float()
    norm = getattr(model.layout.decoder, "norm", None) or getattr(model.layout.decoder, "ln_f", None)
    gain = torch.ones(model.d_model) if norm is None else norm.weight.detach().float()
    generator = torch.Generator().manual_seed(seed)
    room = min(others, model.d_model // 2 - len(words))
    if room < 1:
        raise UsageError(f"{len(words)} words: at most {model.d_model // 2 - 1} for width {model.d_model}")
    rest = [int(i) for i in torch.randperm(len(head), generator=generator) if int(i) not in set(words)][:room]
    atoms = (head - head.mean(0))[[*words, *rest]] * gain
    atoms = atoms / atoms.norm(dim=-1, keepdim=True)
    made = SparseDictionary(model.d_model, len(atoms), "relu", subtract_bias=False)
    with torch.no_grad():
        made.w_dec.copy_(atoms)
        made.w_enc.copy_(torch.linalg.pinv(atoms).T)
    made.provenance = replace(made.provenance, model=model.name, site=f"mlp_out.{layer}")
    return made.requires_grad_(False)


def word_features(dictionaries: Dictionaries, words: Sequence[str]) -> tuple[Feature, ...]:
    """Return the features of `word_dictionary` that are the words themselves, which need no search."""
    return tuple(Feature(layer, i, True, (word,)) for layer in sorted(dictionaries) for i, word in enumerate(words))
