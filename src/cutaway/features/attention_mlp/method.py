"""Attention-MLP look-ups: neurons that write one next token, and the heads that switch them on in some contexts.

1. `congruence`: neuron n writes along its output weight; the token whose unembedding (final norm's gain folded in,
   both centred where the norm centres) agrees most is the one it promotes. In a gated MLP the output's sign varies,
   so each neuron has a token for either sign.
2. `shorten`: the shortest suffix of a prompt that keeps 80% of the activation at its last token, by bisection; what
   is returned has been read and does keep it, also where the activation is not monotone in the length.
3. `attribute`: the stream at the last token is the sum of the embedding, every head's output, biases and MLPs. Their
   shares of the pre-activation are exact (norm scale included). First order,
   ``slope of the activation * share`` is a head's contribution to the activation; `without` gives the activation
   with the head's output taken away, which is the check on it.
4. `active`: a head is active on a prompt where its contribution exceeds the mean plus two SD over that prompt's heads.
   Heads active on 25% to 75% of the prompts have a context to explain.
5. `decide` (see `decide`) states that context as one or two words; `effects` ablates.

Paper: Neo, Cohen, Barez 2024, arXiv:2402.15055. Unlike it: the norm's scale is kept, heads of the neuron's own layer
are included where they precede the MLP, and no judge is asked. Limits: first order at one token; what a head does by
way of other heads is not in its contribution.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.attention_mlp.reading import Reader, final_norm, linear, reader
from cutaway.features.unit import Unit, padded, read_rows
from cutaway.model import Batch, Model

Place = tuple[int, int]
"""(layer, neuron), or (layer, head)."""


@dataclass(frozen=True)
class NextToken:
    """A neuron and the token it promotes where its activation has this sign."""

    layer: int
    neuron: int
    sign: int
    token: int
    congruence: float


@dataclass(frozen=True, eq=False)
class Attribution:
    """What fires one neuron at the last token of each of its prompts."""

    layer: int
    neuron: int
    value: Float[Tensor, " prompt"]
    """Activation."""
    heads: Float[Tensor, "prompt layer head"]
    """First-order contributions to the activation; heads that do not reach the neuron have 0."""
    pre: Float[Tensor, "way prompt"]
    head_pre: Float[Tensor, "way prompt layer head"]
    """Exact shares of the pre-activation."""
    rest_pre: dict[str, Float[Tensor, "way prompt"]]
    """Shares of everything else: embedding, attention biases, mlps, constant."""
    without: Float[Tensor, "prompt layer head"]
    """Activation lost when the head's output at this token is taken out of the stream."""

    def total(self) -> Float[Tensor, "way prompt"]:
        """Return the sum of all shares, which is ``pre``."""
        return self.head_pre.sum((-1, -2)) + torch.stack(list(self.rest_pre.values())).sum(0)

    def share(self, heads: Sequence[Place]) -> float:
        """Return the mean over prompts of the listed heads' part of the (first) pre-activation; nan without prompts."""
        chosen = sum((self.head_pre[0, :, layer, head] for layer, head in heads), torch.zeros(self.pre.shape[1]))
        return float((chosen / self.pre[0]).mean())


def word_like(model: Model, ids: Iterable[int] | None = None) -> Bool[Tensor, " vocab"]:
    """Return the tokens that begin with a blank and are longer than two characters; special tokens are none."""
    allowed = torch.zeros(model.vocab_size, dtype=torch.bool)
    size = min(model.vocab_size, len(model.tokenizer))
    for token in range(size) if ids is None else ids:
        text = model.decode([token])
        allowed[token] = token not in model.special_ids and text[:1] == " " and len(text) > 2 and "�" not in text
    return allowed


@torch.no_grad()
def congruence(
    model: Model, layer: int, *, allowed: Bool[Tensor, " vocab"] | None = None, signs: Sequence[int] = (1, -1)
) -> list[NextToken]:
    """Step 1 for every neuron of a layer, strongest first; ``allowed`` says which tokens count (None: `word_like`).

    UsageError where no token is allowed.
    """
    allowed = word_like(model) if allowed is None else allowed
    tokens = allowed.nonzero()[:, 0]
    if len(tokens) == 0 or len(allowed) != model.vocab_size:
        raise UsageError(f"allowed: {len(tokens)} tokens of {len(allowed)}; name some of the {model.vocab_size}")
    read, norm = reader(model, layer), final_norm(model)
    w_out = norm.centred(read.w_out)
    unembedding = linear(model.hf.get_output_embeddings())[0][tokens.to(w_out.device)] * norm.gain
    unembedding = unembedding - unembedding.mean(0)
    found = []
    for start in range(0, len(w_out), 512):
        scores = w_out[start : start + 512] @ unembedding.T
        for sign in signs:
            best = (sign * scores).max(-1)
            for i, (score, at) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                found.append(NextToken(layer, start + i, sign, int(tokens[at]), score))
    return sorted(found, key=lambda each: -each.congruence)


def shorten(
    unit: Unit, prompts: Sequence[Sequence[int]], *, keep: float = 0.8, start: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """Step 2: prompts without start tokens in, their shortest suffixes out.

    UsageError for a prompt whose activation at the last token is not above 0.
    """
    full = _last(unit, prompts, start)
    if bad := [i for i, value in enumerate(full) if value <= 0]:
        raise UsageError(f"prompt {bad[0]}: {unit.name} has {full[bad[0]]:.3g} at its last token; it does not fire")
    low, high = [0] * len(prompts), [len(prompt) for prompt in prompts]  # too short for certain; read and long enough
    while open_ := [i for i in range(len(prompts)) if high[i] - low[i] > 1]:
        middle = [(low[i] + high[i]) // 2 for i in open_]
        tried = _last(unit, [prompts[i][len(prompts[i]) - n :] for i, n in zip(open_, middle, strict=True)], start)
        for i, n, value in zip(open_, middle, tried, strict=True):
            if value >= keep * full[i]:
                high[i] = n
            else:
                low[i] = n
    return [tuple(prompt[len(prompt) - n :]) for prompt, n in zip(prompts, high, strict=True)]


@torch.no_grad()
def attribute(
    model: Model,
    neurons: Sequence[Place],
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    tokens: int = 1024,
    ablate: bool = True,
) -> list[Attribution]:
    """Step 3: one `Attribution` for each neuron and its prompts (token ids, start tokens included).

    Prompts of all neurons share one set of forward passes, and a prompt that another one begins with is read as part
    of it. ``ablate=False`` leaves ``without`` at zero.
    """
    if len(neurons) != len(prompts) or not all(prompts) or not all(len(p) for some in prompts for p in some):
        raise UsageError("give each neuron at least one prompt, and a token in every prompt")
    readers = {layer: reader(model, layer) for layer in dict.fromkeys(layer for layer, _ in neurons)}
    for layer, neuron in neurons:
        if not 0 <= neuron < readers[layer].directions.shape[1]:
            raise UsageError(f"neuron {neuron}: layer {layer} has 0..{readers[layer].directions.shape[1] - 1}")
    deepest = max(readers)
    wanted = {tuple(prompt) for some in prompts for prompt in some}
    rows, places = _shared(wanted)
    sums: dict[tuple[int, int, tuple[int, ...]], dict[str, Tensor]] = {}
    asked: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for at, some in enumerate(prompts):
        for prompt in dict.fromkeys(map(tuple, some)):
            asked.setdefault(places[prompt][0], []).append((at, prompt))
    weights = [linear(model.layout.attn(layer).get_submodule(model.layout.shape.o)) for layer in range(deepest + 1)]
    w_o = torch.stack([w.T.unflatten(0, (model.n_heads, model.d_head)) for w, _ in weights])
    b_o = torch.stack([b for _, b in weights])
    # What each head's output is worth to each neuron, by entry of z.
    written = {
        place: torch.einsum("lhed,wd->wlhe", w_o, readers[place[0]].directions[:, place[1]])
        for place in dict.fromkeys(neurons)
    }
    for batch, values in _stream(model, rows, deepest, readers, tokens):
        for row in batch:
            for at, prompt in asked[row]:
                layer, neuron = neurons[at]
                here = {site: tensor[batch.index(row), len(prompt) - 1].float() for site, tensor in values.items()}
                parts = _parts(readers[layer], neuron, here, written[layer, neuron], w_o, b_o, ablate)
                sums[layer, neuron, prompt] = parts
    return [
        _joined(readers[layer], neuron, [sums[layer, neuron, tuple(prompt)] for prompt in some])
        for (layer, neuron), some in zip(neurons, prompts, strict=True)
    ]


def active(
    found: Attribution, rule: Literal["2sd", "top3"] = "2sd", *, sign: int = 1
) -> Bool[Tensor, "prompt layer head"]:
    """Step 4: which heads are active on which prompts, by contributions above mean + 2 SD, or the three largest.

    ``sign`` -1 looks for heads that make the activation more negative.
    """
    layers = found.layer + 1
    flat = sign * found.heads[:, :layers].flatten(1)
    if rule == "top3":
        kept = flat >= flat.topk(min(3, flat.shape[1]), dim=-1).values[:, -1:]
    else:
        kept = flat > flat.mean(-1, keepdim=True) + 2 * flat.std(-1, keepdim=True, correction=0)
    return kept.unflatten(1, (layers, -1))


def contextual(found: Bool[Tensor, "prompt layer head"], low: float = 0.25, high: float = 0.75) -> list[Place]:
    """Return the heads active on between ``low`` and ``high`` of the prompts."""
    share = found.float().mean(0)
    kept = ((share >= low) & (share <= high)).nonzero().tolist()
    return [(int(layer), int(head)) for layer, head in kept]


def _last(unit: Unit, prompts: Sequence[Sequence[int]], start: Sequence[int]) -> list[float]:
    found = {i: float(values[-1, 0]) for i, values in read_rows([unit], [(*start, *prompt) for prompt in prompts])}
    return [found[i] for i in range(len(prompts))]


def _shared(prompts: set[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], Place]]:
    """Return rows to read and where each prompt ends: (row, position). A prompt that begins another is part of it."""
    rows: list[tuple[int, ...]] = []
    places: dict[tuple[int, ...], Place] = {}
    for prompt in sorted(prompts, reverse=True):
        # In this order everything that begins with a prompt stands right before it.
        if not rows or rows[-1][: len(prompt)] != prompt:
            rows.append(prompt)
        places[prompt] = (len(rows) - 1, len(prompt) - 1)
    return rows, places


@torch.no_grad()
def _stream(
    model: Model, rows: Sequence[tuple[int, ...]], deepest: int, readers: dict[int, Reader], tokens: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield batches of rows with every part of the stream, longest rows first."""
    sites = ["resid_pre.0", *(f"z.{layer}" for layer in range(deepest + 1))]
    sites += [f"mlp_out.{layer}" for layer in range(deepest)]
    sites += [f"resid_{'pre' if each.parallel else 'mid'}.{layer}" for layer, each in readers.items()]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        batch = order[start : start + max(1, tokens // len(rows[order[start]]))]
        start += len(batch)
        ids, mask = (each.to(model.device) for each in padded([rows[i] for i in batch]))
        held = model.capture(Batch(ids, mask), list(dict.fromkeys(sites)), special=True)
        yield batch, {site: held[site] for site in held}


def _parts(
    read: Reader, neuron: int, here: dict[str, Tensor], written: Tensor, w_o: Tensor, b_o: Tensor, ablate: bool
) -> dict[str, Tensor]:
    """Return one prompt's shares [way ...] of a neuron's pre-activation, and the activation lost without each head."""
    layer, direction = read.layer, read.directions[:, neuron]
    x = here[f"resid_{'pre' if read.parallel else 'mid'}.{layer}"]
    scale = read.norm.scale(x)
    reaching = layer if read.parallel else layer + 1
    z = torch.stack([here[f"z.{each}"] for each in range(reaching)]) if reaching else x.new_zeros(0, *w_o.shape[1:3])
    heads = torch.einsum("lhe,wlhe->wlh", z, written[:, :reaching]) * scale
    mlps = sum((here[f"mlp_out.{each}"] for each in range(layer)), torch.zeros_like(x))
    pre = read.pre(x, neuron)
    lost = x.new_zeros(reaching, w_o.shape[1])
    if ablate and reaching:
        left = x - torch.einsum("lhe,lhed->lhd", z, w_o[:reaching])
        lost = read.value(pre) - read.value(read.pre(left, neuron))
    return {
        "pre": pre,
        "heads": heads,
        "lost": lost,
        "embedding": direction @ here["resid_pre.0"] * scale,
        "attention biases": direction @ b_o[:reaching].sum(0) * scale,
        "mlps": direction @ mlps * scale,
        "constant": read.constants[:, neuron],
    }


def _joined(read: Reader, neuron: int, parts: Sequence[dict[str, Tensor]]) -> Attribution:
    pre = torch.stack([each["pre"] for each in parts], 1).cpu()
    heads = torch.stack([each["heads"] for each in parts], 1).cpu()
    width = read.layer + 1
    short = width - heads.shape[2]
    heads = torch.nn.functional.pad(heads, (0, 0, 0, short))
    lost = torch.nn.functional.pad(torch.stack([each["lost"] for each in parts]).cpu(), (0, 0, 0, short))
    names = ("embedding", "attention biases", "mlps", "constant")
    rest = {name: torch.stack([each[name] for each in parts], 1).cpu() for name in names}
    first = torch.einsum("wp,wplh->plh", read.slopes(pre), heads)
    return Attribution(read.layer, neuron, read.value(pre), first, pre, heads, rest, lost)
