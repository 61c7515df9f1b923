r"""GPT-2s with hand-set weights that add, looking at a known number of columns.

1. At the position that predicts answer digit j, head k attends in equal parts to both digits of column j - k and
   writes their sum, times ``10 ** (columns - 1 - k)``, into one residual coordinate W. A column that does not
   exist is looked up at the operator, whose value is 0.
2. With ``columns = 3``, W = 100 s_j + 10 s_{j-1} + s_{j-2}, and floor(W / 100) mod 10 is the answer digit of the
   published account: a carry from the column below, or one that a column of sum 9 passes on from two below. A
   carry that runs through two columns or more is lost. ``columns = 2`` loses every passed carry, 1 every carry.
3. The last MLP turns W into a digit: two ReLUs make each step at a multiple of 100.
4. Other heads are decoys: they attend to a column too, and write what nobody reads.

Layer norm returns its input unchanged because the residual stream has a constant length: every token carries the
length that its other coordinates lack. W itself changes the length a little; the MLP's thresholds stand where the
norm puts them. Coordinates lie in a random basis orthogonal to (1, ..., 1), so none is a coordinate axis.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.model import Model

LENGTH = 6.0
"""Length of the residual stream at every token."""
GAP = 16.0
"""Attention score by which a wanted position beats the others."""
LOGIT = 40.0
_VALUE, _FILL, _SUM, _UNREAD, _FIRST, _SECOND, _OUT = range(7)
_KEYS = _OUT + 10

Node = tuple[int, int, int]
"""Position, layer, head."""


@dataclass(frozen=True)
class AdderTruth:
    """What each head does."""

    columns: int
    """Columns that an answer digit depends on: its own and those below it."""
    heads: tuple[tuple[tuple[int, int], ...], ...]
    """(layer, head) of the heads that read the column k below; two where the job is split between them."""
    roles: dict[Node, tuple[str, int, int]]
    """Node that does a whole job alone: its sub-task (SA, ST or SC), the column it reads, the answer digit."""
    pairs: dict[tuple[Node, Node], tuple[str, int, int]]
    """The same for jobs split between two heads of one layer."""


@dataclass(frozen=True)
class Adder:
    """A planted adder."""

    model: Model
    truth: AdderTruth


def adder(
    digits: int = 5,
    *,
    columns: int = 3,
    layers: int = 1,
    decoys: int = 1,
    split: bool = False,
    signed: bool = False,
    null: bool = False,
    seed: int = 0,
) -> Adder:
    """Build a planted adder; ``seed`` places the heads and draws the basis.

    ``split`` gives the digit's own column to two heads, one for each number. ``null`` fills every weight with
    noise: no head has a job. With two layers or more the head for the own column sits in the first layer, the
    others in the last one. UsageError for ``columns`` outside 1..4: fp32 cannot carry more in one number.
    """
    if not 1 <= columns <= 4:
        raise UsageError(f"columns={columns}: 1 to 4")
    if digits < 1 or layers < 1 or decoys < 0:
        raise UsageError(f"digits={digits}, layers={layers}, decoys={decoys}: at least 1 digit and 1 layer")
    generator = torch.Generator().manual_seed(seed)
    plan = _Plan(digits, columns, layers, columns + split + decoys, split, signed)
    symbols = "0123456789+-=*/" if signed else "0123456789+="
    hf = blank_gpt2(
        symbols=symbols,
        d_model=plan.d_model,
        n_layers=layers,
        n_heads=plan.n_heads,
        d_mlp=40,
        n_ctx=plan.n_ctx,
    )
    model = Model(hf, symbol_tokenizer(symbols), "planted-adder")
    jobs = _place(plan, generator)
    with torch.no_grad():
        if null:
            for parameter in hf.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            return Adder(model, AdderTruth(columns, (), {}, {}))
        basis = _basis(plan.d_model, generator)
        _embed(hf, plan, basis, symbols)
        for (layer, head), (below, half) in jobs.items():
            _head(hf, plan, basis, layer, head, below, half)
        _digits(hf, plan, basis, symbols)
    return Adder(model, _truth(plan, jobs))


def symbol_tokenizer(symbols: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a character: the id is the place in ``symbols``, anything else an error."""
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def blank_gpt2(*, symbols: str, d_model: int, n_layers: int, n_heads: int, d_mlp: int, n_ctx: int) -> GPT2LMHeadModel:
    """Return an fp32 GPT-2 whose every weight is zero: ReLU, learned positions, no dropout, untied embeddings."""
    config = GPT2Config(
        vocab_size=len(symbols),
        n_positions=n_ctx,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        n_inner=d_mlp,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@dataclass(frozen=True)
class _Plan:
    digits: int
    columns: int
    layers: int
    n_heads: int
    split: bool
    signed: bool

    @property
    def n_ctx(self) -> int:
        return 3 * self.digits + 3 + self.signed

    @property
    def queries(self) -> int:
        """First coordinate of the query codes: one for each answer digit and one for the sign."""
        return _KEYS + self.digits + 1

    @property
    def d_head(self) -> int:
        # One dimension a key code (columns and the sink), one for which number, one for the value.
        return max(self.digits + 3, -(-(self.queries + self.digits + 4) // self.n_heads))

    @property
    def d_model(self) -> int:
        return self.n_heads * self.d_head

    def predicts(self, digit: int) -> int:
        return self.n_ctx - 2 - digit

    @property
    def top(self) -> float:
        """Largest W."""
        return 18.0 * sum(10**k for k in range(self.columns))

    @property
    def scale(self) -> float:
        """What W is multiplied by; small where a later layer reads a stream that W has lengthened."""
        return (1.0 if self.layers == 1 else 0.1) / self.top


_Half = Literal["both", "first", "second"]
_Jobs = dict[tuple[int, int], tuple[int | None, _Half]]


def _place(plan: _Plan, generator: torch.Generator) -> _Jobs:
    """Deal the jobs to random heads; decoys (None) fill what is left."""
    jobs: list[tuple[int, _Half]] = [(0, "first"), (0, "second")] if plan.split else [(0, "both")]
    jobs += [(below, "both") for below in range(1, plan.columns)]
    free = {layer: torch.randperm(plan.n_heads, generator=generator).tolist() for layer in range(plan.layers)}
    placed: _Jobs = {}
    for below, half in jobs:
        layer = 0 if below == 0 else plan.layers - 1
        placed[layer, free[layer].pop()] = (below, half)
    return placed | {(layer, head): (None, "both") for layer, heads in free.items() for head in heads}


def _basis(d_model: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, all orthogonal to (1, ..., 1), in fp64."""
    start = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64)
    start[:, 0] = 1.0
    return torch.linalg.qr(start)[0][:, 1:]


def _embed(hf: GPT2LMHeadModel, plan: _Plan, basis: Tensor, symbols: str) -> None:
    """Tokens carry a value, positions a code; the two lengths add up to `LENGTH` everywhere."""
    width, n = basis.shape[1], plan.digits
    tokens = torch.zeros(len(symbols), width, dtype=torch.float64)
    tokens[:10, _VALUE] = torch.arange(10) / 9
    tokens[:, _FILL] = (2.0 - tokens[:, _VALUE] ** 2).sqrt()
    codes = torch.zeros(plan.n_ctx, width, dtype=torch.float64)
    for i in range(n):
        for position, number in ((n - 1 - i, _FIRST), (2 * n - i, _SECOND)):
            codes[position, [_KEYS + i, number]] = 0.5**0.5
    codes[n, _KEYS + n] = 1.0
    for j in range(n + 2):
        position = plan.predicts(j)
        if position > 2 * n:
            codes[position, plan.queries + j] = 1.0
    codes *= (LENGTH**2 - 2.0) ** 0.5
    # The last answer digit asks nothing; it needs the same length nevertheless.
    codes[-1, -1] = (LENGTH**2 - 2.0) ** 0.5
    hf.transformer.wte.weight.copy_(tokens @ basis.T)
    hf.transformer.wpe.weight.copy_(codes @ basis.T)
    norms: list[Any] = [norm for block in hf.transformer.h for norm in (block.ln_1, block.ln_2)]
    for norm in (*norms, hf.transformer.ln_f):
        norm.weight.fill_(LENGTH / plan.d_model**0.5)


def _head(
    hf: GPT2LMHeadModel, plan: _Plan, basis: Tensor, layer: int, head: int, below: int | None, half: _Half
) -> None:
    n, width, d_head = plan.digits, basis.shape[1], plan.d_head
    q, k, v = (torch.zeros(width, d_head, dtype=torch.float64) for _ in range(3))
    # A digit's code is shared between its column and its number, hence the root of 2.
    strength = (2**0.5 * GAP * d_head**0.5 / (LENGTH**2 - 2.0)) ** 0.5
    shift = 1 if below is None else below
    for j in range(n + 2):
        column = j - shift
        # The sign (j = n + 1) asks for nothing, as does a column that is not there.
        q[plan.queries + j, column if 0 <= column < n and j <= n else n] = strength
        q[plan.queries + j, n + 1] = strength
    for i in range(n):
        k[_KEYS + i, i] = strength
    k[_KEYS + n, n] = 2 * strength
    if half != "both":
        k[_FIRST if half == "first" else _SECOND, n + 1] = strength
    v[_VALUE, -1] = 1.0
    block: Any = hf.transformer.h[layer]
    attention, at = block.attn, slice(head * d_head, (head + 1) * d_head)
    for place, matrix in enumerate((q, k, v)):
        columns = slice(place * plan.d_model + at.start, place * plan.d_model + at.stop)
        attention.c_attn.weight[:, columns] = (basis @ matrix).float()
    seen = 2 if half == "both" else 1  # the mean of two digits is half their sum
    weight = 0.01 if below is None else 9 * seen * plan.scale * 10 ** (plan.columns - 1 - below)
    attention.c_proj.weight[at.stop - 1] = (weight * basis[:, _UNREAD if below is None else _SUM]).float()


def _digits(hf: GPT2LMHeadModel, plan: _Plan, basis: Tensor, symbols: str) -> None:
    """Turn W into a digit at the last MLP, and write it."""
    unit = 10 ** (plan.columns - 1)
    block: Any = hf.transformer.h[-1]
    writes = torch.zeros(40, basis.shape[1], dtype=torch.float64)
    bias = torch.zeros(basis.shape[1], dtype=torch.float64)
    bias[_OUT] = 1.0
    for step in range(1, 20):
        ends = torch.tensor([step * unit - 0.75, step * unit - 0.25], dtype=torch.float64) * plan.scale
        low, high = (ends / (1 + (ends / LENGTH) ** 2).sqrt()).tolist()
        for place, (end, sign) in enumerate(((low, 1.0), (high, -1.0))):
            neuron = 2 * (step - 1) + place
            block.mlp.c_fc.weight[:, neuron] = basis[:, _SUM].float()
            block.mlp.c_fc.bias[neuron] = -end
            writes[neuron, _OUT + step % 10] += sign / (high - low)
            writes[neuron, _OUT + (step - 1) % 10] -= sign / (high - low)
    block.mlp.c_proj.weight.copy_(writes @ basis.T)
    block.mlp.c_proj.bias.copy_(bias @ basis.T)
    reads = torch.zeros(len(symbols), basis.shape[1], dtype=torch.float64)
    reads[:10, _OUT : _OUT + 10] = LOGIT * torch.eye(10, dtype=torch.float64)
    if plan.signed:
        reads[symbols.index("+"), plan.queries + plan.digits + 1] = LOGIT
    hf.lm_head.weight.copy_(reads @ basis.T)


def _truth(plan: _Plan, jobs: _Jobs) -> AdderTruth:
    heads = tuple(tuple(sorted(place for place, (below, _) in jobs.items() if below == k)) for k in range(plan.columns))
    roles: dict[Node, tuple[str, int, int]] = {}
    pairs: dict[tuple[Node, Node], tuple[str, int, int]] = {}
    for below, places in enumerate(heads):
        for j in range(plan.digits + 1):
            column = j - below
            if not 0 <= column < plan.digits:
                continue
            # Whether a column passes a carry on matters only where a carry from further below is seen.
            three_way = column > 0 and below + 1 < plan.columns
            role = ("SA" if below == 0 else "ST" if three_way else "SC", column, j)
            nodes: list[Node] = [(plan.predicts(j), layer, head) for layer, head in places]
            if len(nodes) == 1:
                roles[nodes[0]] = role
            else:
                pairs[nodes[0], nodes[1]] = role
    return AdderTruth(plan.columns, heads, roles, pairs)
