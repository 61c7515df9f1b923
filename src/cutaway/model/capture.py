"""One forward pass, the tensors of the sites asked for, and nothing after the last of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from cutaway.errors import UsageError, nearest
from cutaway.model import pattern
from cutaway.model.edits import Positions, _positions
from cutaway.model.families import Layout, module_input
from cutaway.model.pattern import Ingredients, Meeting, attention_pattern, meeting
from cutaway.model.sites import Site, expand

if TYPE_CHECKING:
    from cutaway.model.model import Batch


@dataclass(frozen=True, eq=False)
class Activations(Mapping[str, Tensor]):
    """Captured tensors by site name; the names given to `capture` work as keys too.

    Every tensor is [batch pos ...]: d_model for the residual stream and what is added to it, [head d_head]
    for q, k, v, z, d_mlp for neurons, vocab for logits; pattern is [batch head pos keys].
    """

    tensors: dict[str, Tensor]
    mask: Bool[Tensor, "batch pos"]
    """True at real tokens that carry text: padding is out, and so are special tokens unless asked for."""
    positions: Int[Tensor, "batch pos"]
    """Absolute position of each column in its row; -1 at padding."""
    names: dict[str, str]
    """Alias as given, for a single site, to canonical name."""

    def __getitem__(self, site: str) -> Tensor:
        found = self.tensors.get(self.names.get(site, site))
        if found is None:
            raise KeyError(f"{site!r} was not captured{nearest(site, self.tensors)}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        rows, columns = self.mask.shape
        inside = int(self.mask.sum())
        return f"Activations({len(self)} sites, {rows} rows, {columns} positions, {inside} in the mask)"

    def flat(self, site: str) -> Tensor:
        """Return the values at the mask's tokens only, one row a token: [token ...]."""
        if self.names.get(site, site).startswith("pattern"):
            raise UsageError(f"{site!r}: a pattern has two position axes and no flat form; index it with .mask")
        return self[site][self.mask]


class _Stop(Exception):  # noqa: N818  it is no error
    """The last site asked for has been seen; nothing after it need run."""


class _Recorder:
    """Hooks that keep what passes. Raises `_Stop` once nothing is left to wait for."""

    def __init__(self, layout: Layout, sites: Sequence[Site], columns: Tensor | None, to_end: bool) -> None:
        self.layout = layout
        self.columns = columns
        self.to_end = to_end
        self.seen: dict[Site, Tensor] = {}
        self.patterns: dict[int, Ingredients] = {}
        self._waiting = 0
        self._plans: dict[tuple[nn.Module, str], list[Callable[[Tensor, Tensor], None]]] = {}
        self._attention: list[int] = []
        for site in sites:
            self._plan(site)

    def install(self) -> list[Any]:
        handles = []
        for (module, side), keeps in self._plans.items():
            if side == "in":
                handles.append(module.register_forward_pre_hook(self._before(keeps), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(self._after(keeps), with_kwargs=True))
        for layer in self._attention:
            hook = self._arguments(layer)
            handles.append(self.layout.attn(layer).register_forward_pre_hook(hook, with_kwargs=True))
        self._waiting = len(handles)
        return handles

    def value(self, site: Site) -> Tensor:
        if site.kind != "pattern":
            return self.seen[site]
        assert site.layer is not None
        whole = Site("pattern", site.layer)
        if whole not in self.seen:
            made_of = self.patterns.pop(site.layer)
            self.seen[whole] = attention_pattern(self.layout, site.layer, made_of, self.columns)
        return self.seen[whole] if site.head is None else self.seen[whole][:, site.head]

    def _plan(self, site: Site) -> None:
        if site.kind == "logits":
            return
        if site.kind == "pattern":
            self._plan_pattern(site)
            return
        port = self.layout.port(site.kind, site.layer)

        def keep(tensor: Tensor, given: Tensor) -> None:
            value = port.read(tensor, given)
            value = value if site.head is None else value[:, :, site.head]
            self.seen[site] = gather(value, self.columns)

        self._plans.setdefault((port.module, port.side), []).append(keep)

    def _plan_pattern(self, site: Site) -> None:
        assert site.layer is not None
        layer = site.layer
        if layer in self.patterns:
            return
        pattern.check(self.layout, layer)
        made_of = self.patterns[layer] = Ingredients()
        self._attention.append(layer)
        for kind in ("q", "k"):
            port = self.layout.port(kind, layer)

            def keep(tensor: Tensor, given: Tensor, port: Any = port, kind: str = kind) -> None:
                setattr(made_of, kind, port.read(tensor, given))

            self._plans.setdefault((port.module, port.side), []).append(keep)

    def _before(self, keeps: Sequence[Callable[[Tensor, Tensor], None]]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = module_input(args, kwargs)
            for keep in keeps:
                keep(tensor, tensor)
            self._done()

        return hook

    def _after(self, keeps: Sequence[Callable[[Tensor, Tensor], None]]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = module_input(args, kwargs)
            tensor = output[0] if isinstance(output, tuple) else output
            for keep in keeps:
                keep(tensor, given)
            self._done()

        return hook

    def _arguments(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            wanted = ("attention_mask", "position_embeddings")
            self.patterns[layer].arguments = {name: kwargs.get(name) for name in wanted}
            self._done()

        return hook

    def _done(self) -> None:
        self._waiting -= 1
        if self._waiting == 0 and not self.to_end:
            raise _Stop


def capture(
    layout: Layout,
    batch: "Batch",
    sites: str | Sequence[str],
    positions: Positions,
    special_ids: frozenset[int],
) -> Activations:
    """Run the model once on ``batch`` and return the activations; see `Model.capture`."""
    named = expand(sites, layout)
    wanted = list(dict.fromkeys(site for found in named.values() for site in found))
    columns, real, chosen = select(positions, batch.mask)
    with_logits = any(site.kind == "logits" for site in wanted)
    recorder = _Recorder(layout, wanted, columns, to_end=with_logits)
    handles = recorder.install()
    try:
        output = layout.hf(**batch.forward_kwargs(), use_cache=False)
        if with_logits:
            recorder.seen[Site("logits")] = gather(output.logits, columns)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    mask = real if chosen else real & ~_special(gather(batch.ids, columns), special_ids)
    absolute = torch.where(batch.mask, batch.mask.long().cumsum(-1) - 1, -1)
    return Activations(
        tensors={str(site): recorder.value(site) for site in wanted},
        mask=mask,
        positions=torch.where(real, gather(absolute, columns), -1),
        names={name: str(found[0]) for name, found in named.items() if len(found) == 1},
    )


def stream_attention(
    layout: Layout,
    batch: "Batch",
    layers: Sequence[int],
    visit: Callable[[int, Meeting], None],
    positions: Positions = None,
) -> None:
    """Run the model once and show ``visit`` each of ``layers``' queries and keys; none is kept after its turn.

    ``positions`` picks the queries, as in `Model.capture`. The forward ends before the last layer's attention.
    """
    columns, _, _ = select(positions, batch.mask)
    recorder = _Recorder(layout, [Site("pattern", layer) for layer in layers], columns, to_end=False)

    def show(layer: int) -> None:
        visit(layer, meeting(layout, layer, recorder.patterns.pop(layer), columns))

    handles = recorder.install()
    for layer in layers:
        handles.append(layout.attn(layer).register_forward_hook(lambda *_, layer=layer: show(layer)))
    try:
        layout.hf(**batch.forward_kwargs(), use_cache=False)
    except _Stop:
        for layer in list(recorder.patterns):
            show(layer)
    finally:
        for handle in handles:
            handle.remove()


def select(
    positions: Positions, mask: Bool[Tensor, "batch pos"]
) -> tuple[Tensor | None, Bool[Tensor, "batch chosen"], bool]:
    """Return the columns meant in each row (None: all), which are real, and if they were named one by one.

    Rows of a slice that are shorter than others are filled with their last column, not real.
    """
    asked = _positions(positions)
    if asked is None:
        return None, mask, False
    starts, lengths = mask.int().argmax(-1).tolist(), mask.sum(-1).tolist()
    rows = [_row(asked, length, row) for row, length in enumerate(lengths)]
    width = max(map(len, rows))
    if width == 0:
        raise UsageError(f"positions={positions}: no row has a token there")
    padded = [row + [-1] * (width - len(row)) for row in rows]
    relative = torch.tensor(padded, device=mask.device)
    real = relative >= 0
    last = torch.tensor(lengths, device=mask.device)[:, None] - 1
    columns = torch.where(real, relative, last) + torch.tensor(starts, device=mask.device)[:, None]
    return columns, real, isinstance(asked, tuple)


def gather(value: Tensor, columns: Tensor | None) -> Tensor:
    """Return ``value`` [batch pos ...] at ``columns`` [batch n], or as it is."""
    if columns is None:
        return value
    return value[torch.arange(len(columns), device=value.device)[:, None], columns]


def _row(asked: Any, length: int, row: int) -> list[int]:
    if isinstance(asked, slice):
        return list(range(length))[asked]
    bad = [position for position in asked if not -length <= position < length]
    if bad:
        raise UsageError(f"position {bad[0]} is outside row {row}, which has {length} tokens")
    return [position % length for position in asked]


def _special(ids: Tensor, special_ids: frozenset[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(special_ids), device=ids.device, dtype=ids.dtype))
