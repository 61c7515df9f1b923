"""Edits at work: ordinary forward hooks, one for each side of a module; nothing is written in place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model.attention_mask import check_mask, hide, lean
from cutaway.model.edits import (
    Add,
    AttentionBias,
    AttentionMask,
    Edit,
    EditError,
    GradientStep,
    Mask,
    Patch,
    Project,
    Replace,
    Scale,
)
from cutaway.model.families import HEAD_KINDS, Layout, Port, module_input, with_input
from cutaway.model.sites import Site, parse
from cutaway.model.where import Locator

Change = Callable[[Tensor, Tensor], Tensor]
"""``(the module's tensor, its input)`` to its new tensor."""


class _Running:
    """One edit in one context: does the arithmetic and notes whether anything changed."""

    def __init__(self, edit: Edit, locator: Locator) -> None:
        self.edit = edit
        self.locator = locator
        self.reached = False
        self.changed = False
        self._basis: Tensor | None = None

    def __call__(self, value: Tensor, rank: int) -> Tensor:
        """Return the edited ``value`` [batch pos ...] with ``rank`` axes after pos."""
        edit, positions = self.edit, getattr(self.edit, "positions", None)
        self.reached = True
        operand = _operand(edit)
        local = positions is not None or (operand is not None and operand.ndim > rank)
        chosen: Tensor | None = None
        if local:
            where = self.locator.where()
            columns = where.queries[:, -value.shape[1] :]
            chosen, order = where.match(positions, columns)
            if isinstance(edit, Patch):
                order = columns
            operand, inside = _align(edit, operand, rank, order, len(value))
            if inside is not None:
                chosen = inside if chosen is None else chosen & inside
        new = edit.stepped(value) if isinstance(edit, GradientStep) else self._arithmetic(value, operand)
        if chosen is not None:
            new = torch.where(chosen[(..., *[None] * rank)], new, value)
        self._note(new, value, operand)
        return new

    def _arithmetic(self, value: Tensor, operand: Tensor | None) -> Tensor:
        edit = self.edit
        if isinstance(edit, Project):
            with torch.autocast(value.device.type, enabled=False):  # products in bf16 would leave a trace of the span
                return _project(value, self._directions(value), edit.keep)
        if isinstance(edit, Mask):
            return value * _keep(edit, value) if edit.index is not None else torch.zeros_like(value)
        if isinstance(edit, Scale) and operand is None:
            return value * edit.factor
        assert operand is not None
        operand = operand.to(value)
        if isinstance(edit, Add):
            return value + edit.scale * operand
        if isinstance(edit, Scale):
            return value * operand
        return operand.expand_as(value)

    def _directions(self, value: Tensor) -> Tensor:
        assert isinstance(self.edit, Project)
        if self.edit.directions.requires_grad:
            return self.edit.basis().to(value.device)
        if self._basis is None:
            self._basis = self.edit.basis().to(value.device)
        return self._basis

    def _note(self, new: Tensor, old: Tensor, operand: Tensor | None) -> None:
        if not self.changed:
            # a tensor being trained may start where it changes nothing
            trained = operand is not None and operand.requires_grad
            self.changed = trained or not torch.equal(new, old)


@contextmanager
def edited(layout: Layout, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply ``edits`` to every forward inside the block, in the order given; then take all hooks off.

    Raises UsageError on entry for an edit that does not fit, EditError on exit for one without effect.
    """
    locator = Locator(layout.decoder)
    running = [_Running(edit, locator) for edit in edits]
    handles: list[Any] = []
    try:
        handles.append(layout.decoder.register_forward_pre_hook(locator.hook, with_kwargs=True))
        plans: dict[tuple[nn.Module, str], list[Change]] = {}
        for run in running:
            _plan(layout, run, plans, handles)
        handles.extend(_hook(module, side, changes) for (module, side), changes in plans.items())
        yield
    finally:
        for handle in handles:
            handle.remove()
    for run in running:
        if not run.changed:
            raise EditError(_idle(run))


def _plan(layout: Layout, run: _Running, plans: dict[tuple[nn.Module, str], list[Change]], handles: list[Any]) -> None:
    for site in parse(run.edit.site, layout):
        if isinstance(run.edit, AttentionMask | AttentionBias):
            handles.append(_hook_mask(layout, run, run.edit, site))
            continue
        if site.kind == "pattern":
            raise UsageError(
                f"{type(run.edit).__name__} at {str(site)!r}: attention weights are never formed by the fused"
                " kernel, so they cannot be edited; use AttentionMask or AttentionBias, or edit q, k or z"
            )
        dims = layout.dims(site.kind)
        dims = dims[1:] if site.head is not None else dims
        _check(run.edit, site, dims)
        port, change = _change(layout, run, site, len(dims), handles)
        plans.setdefault((port.module, port.side), []).append(change)


def _change(layout: Layout, run: _Running, site: Site, rank: int, handles: list[Any]) -> tuple[Port, Change]:
    if site.kind == "resid_mid":
        return _change_mid(layout, run, site, handles)
    port = layout.port(site.kind, site.layer)

    def change(tensor: Tensor, given: Tensor) -> Tensor:
        value = port.read(tensor, given)
        if site.head is None:
            return port.write(tensor, given, run(value, rank))
        new = value.clone()
        new[:, :, site.head] = run(value[:, :, site.head], rank)
        return port.write(tensor, given, new)

    return port, change


def _change_mid(layout: Layout, run: _Running, site: Site, handles: list[Any]) -> tuple[Port, Change]:
    """Edit the stream between attention and MLP by way of what attention adds to it.

    A hook before the MLP's norm would miss the residual branch, which no module carries.
    """
    assert site.layer is not None
    layout.port("resid_mid", site.layer)
    port = layout.port("attn_out", site.layer)
    base: list[Tensor] = []

    def stash(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        base[:] = [module_input(args, kwargs)]

    handles.append(layout.entry(site.layer).register_forward_pre_hook(stash, with_kwargs=True))

    def change(tensor: Tensor, _given: Tensor) -> Tensor:
        return run(base[0] + tensor, 1) - base[0]

    return port, change


def _hook(module: nn.Module, side: str, changes: Sequence[Change]) -> Any:
    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = module_input(args, kwargs)
        for change in changes:
            tensor = change(tensor, tensor)
        return with_input(args, kwargs, tensor)

    def after(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = module_input(args, kwargs)
        tensor = output[0] if isinstance(output, tuple) else output
        for change in changes:
            tensor = change(tensor, given)
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    if side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after, with_kwargs=True)


def _hook_mask(layout: Layout, run: _Running, edit: AttentionMask | AttentionBias, site: Site) -> Any:
    assert site.layer is not None
    layer = site.layer
    check_mask(edit, layout)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run.reached = True
        here: dict[str, Any] = {
            "where": run.locator.where(),
            "old": kwargs.get("attention_mask"),
            "hidden": module_input(args, kwargs),
        }
        if isinstance(edit, AttentionBias):
            mask, changed = lean(edit, layout, layer, **here)
        else:
            mask, changed = hide(edit, layout, layer, **here)
        run.changed = run.changed or changed
        return args, {**kwargs, "attention_mask": mask}

    return layout.attn(layer).register_forward_pre_hook(before, with_kwargs=True)


def _operand(edit: Edit) -> Tensor | None:
    if isinstance(edit, Add):
        return edit.vector
    if isinstance(edit, Replace):
        return edit.value
    if isinstance(edit, Patch):
        return edit.source
    return edit.factor if isinstance(edit, Scale) and isinstance(edit.factor, Tensor) else None


def _align(
    edit: Edit, operand: Tensor | None, rank: int, order: Tensor, rows: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the operand laid out as [rows|1 pos ...], and which columns it has a value for (None: all)."""
    if operand is None or operand.ndim <= rank:
        return operand, None
    values = operand if operand.ndim == rank + 2 else operand[None]
    if len(values) not in (1, rows):
        raise UsageError(f"{type(edit).__name__} at {edit.site!r}: {len(values)} rows of values for a batch of {rows}")
    inside = (order >= 0) & (order < values.shape[1])
    index = order.clamp(0, values.shape[1] - 1)
    height = max(len(values), len(index))
    picked = values.to(order.device).expand(height, *values.shape[1:])
    return picked[torch.arange(height, device=order.device)[:, None], index.expand(height, -1)], inside


def _project(value: Tensor, basis: Tensor, keep: bool) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32)
    exact = value.to(wide)
    basis = basis.to(wide)
    inside = (exact @ basis.T) @ basis
    return (inside if keep else exact - inside).to(value.dtype)


def _keep(edit: Mask, value: Tensor) -> Tensor:
    """Return ones with zeros at the masked entries of the axis after pos: heads, or the only one there is."""
    assert isinstance(edit.index, tuple)
    axis = 2
    keep = torch.ones(value.shape[axis], dtype=value.dtype, device=value.device)
    keep = keep.index_fill(0, torch.tensor(edit.index, device=value.device), 0)
    return keep[(..., *[None] * (value.ndim - axis - 1))]


def _check(edit: Edit, site: Site, dims: tuple[int, ...]) -> None:
    what = f"{type(edit).__name__} at {str(site)!r}"
    if isinstance(edit, Mask) and isinstance(edit.index, tuple):
        unit = "head" if len(dims) == 2 and site.kind in HEAD_KINDS else "index"
        bad = [index for index in edit.index if not 0 <= index < dims[0]]
        if bad:
            raise UsageError(f"{what}: {unit} {bad[0]} must be 0..{dims[0] - 1}")
    if isinstance(edit, Project) and edit.directions.shape[-1] != dims[-1]:
        raise UsageError(f"{what}: directions have {edit.directions.shape[-1]} entries, the site {dims[-1]}")
    if isinstance(edit, GradientStep) and edit.w1.shape[-1] != dims[-1]:
        raise UsageError(f"{what}: w1 reads {edit.w1.shape[-1]} entries, the site has {dims[-1]}")
    operand = _operand(edit)
    if operand is None or operand.ndim == 0:
        return
    extra = operand.ndim - len(dims)
    if extra not in (0, 1, 2) or tuple(operand.shape[extra:]) != dims:
        raise UsageError(
            f"{what}: tensor of shape {list(operand.shape)} does not fit; the site has {list(dims)} at one"
            " position, with [pos ...] or [batch pos ...] in front where positions differ"
        )
    positions = getattr(edit, "positions", None)
    if extra and not isinstance(edit, Patch) and isinstance(positions, tuple):
        given = operand.shape[extra - 1]
        if given != len(positions):
            raise UsageError(f"{what}: {given} values for {len(positions)} positions")


def _idle(run: _Running) -> str:
    if not run.reached:
        return f"{run.edit!r} met no forward pass that reached its site; run the model inside the block"
    return (
        f"{run.edit!r} changed nothing: no token stood at its positions or the values were already so;"
        " check its positions and values"
    )
