"""Linear probes that read every token while it is written.

A score is ``weight . activation + bias`` of the token itself: the model has read the token when it is scored, the last
one included. Inside `Watch.on` the sites' values are noted as each forward passes; `Watch.scores` then reads them.
Edits that were applied before see to it that the edited values are the ones read.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model.families import module_input
from cutaway.model.sites import Site, parse
from cutaway.probes import LinearProbe

if TYPE_CHECKING:
    from cutaway.model import Model


@dataclass(frozen=True, eq=False)
class Monitor:
    """A probe under the name that answers use for it, and the place it reads, found once."""

    name: str
    probe: LinearProbe
    site: Site


def monitor_of(model: "Model", name: str, probe: LinearProbe) -> Monitor:
    """Return ``probe`` as a monitor of ``model``; UsageError as `site_of`."""
    return Monitor(name, probe, site_of(model, probe))


def site_of(model: "Model", probe: LinearProbe) -> Site:
    """The one place that ``probe`` reads; UsageError where the model has no such place, or of another width."""
    found = parse(probe.site, model.layout)
    if len(found) != 1 or found[0].kind in ("logits", "pattern"):
        raise UsageError(f"site {probe.site!r}: a monitor reads one place of the stream, a layer's part or a head")
    model.layout.port(found[0].kind, found[0].layer)
    dims = model.layout.dims(found[0].kind)
    width = math.prod(dims if found[0].head is None else dims[1:])
    if probe.d != width:
        raise UsageError(f"a probe at {probe.site!r} needs {width} weights; {probe.d} given")
    if probe.fingerprint and probe.fingerprint != model.fingerprint:
        raise UsageError(f"the probe at {probe.site!r} was fitted on other weights ({probe.model or 'unnamed'})")
    return found[0]


class Watch:
    """Notes what passes the sites of some monitors, and scores it."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._seen: dict[Site, Tensor] = {}
        self._weights: dict[Site, tuple[Tensor, Tensor]] = {}
        """Of all monitors at a site: weights [d monitor], biases [monitor]."""
        self._columns: dict[Monitor, int] = {}

    @contextmanager
    def on(self, monitors: Iterable[Monitor]) -> Iterator[None]:
        """Note the values at the monitors' sites in every forward inside the block."""
        # Not `Model.capture`: that runs a forward of its own, and these values come from the engine's decode steps.
        there: dict[Site, list[Monitor]] = {}
        for each in dict.fromkeys(monitors):
            there.setdefault(each.site, []).append(each)
        device = self._model.device
        for site, members in there.items():
            weight = torch.stack([each.probe.weight.float() for each in members], 1).to(device)
            self._weights[site] = weight, torch.tensor([each.probe.bias for each in members], device=device)
            self._columns |= {each: column for column, each in enumerate(members)}
        handles = [self._hook(site) for site in there]
        try:
            yield
        finally:
            for kept in (self._seen, self._weights, self._columns):
                kept.clear()
            for handle in handles:
                handle.remove()

    def scores(self, wanted: Sequence[tuple[Monitor, ...]]) -> list[dict[str, float | None]]:
        """For each row of the last forward, in its order, the score of its newest token under each of its monitors.

        None stands for a number that is no longer finite.
        """
        # One product a site for all rows and monitors: what rows did not ask for costs less than sorting it out.
        numbers = {
            site: (self._seen[site][:, -1].flatten(1).float() @ weight + bias).tolist()
            for site, (weight, bias) in self._weights.items()
        }
        found: list[dict[str, float | None]] = []
        for row, monitors in enumerate(wanted):
            scores = {each.name: numbers[each.site][row][self._columns[each]] for each in monitors}
            found.append({name: score if math.isfinite(score) else None for name, score in scores.items()})
        return found

    def _hook(self, site: Site) -> Any:
        port = self._model.layout.port(site.kind, site.layer)

        def note(tensor: Tensor, given: Tensor) -> None:
            value = port.read(tensor, given)
            self._seen[site] = value if site.head is None else value[:, :, site.head]

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = module_input(args, kwargs)
            note(tensor, tensor)

        def after(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            note(output[0] if isinstance(output, tuple) else output, module_input(args, kwargs))

        if port.side == "in":
            return port.module.register_forward_pre_hook(before, with_kwargs=True)
        return port.module.register_forward_hook(after, with_kwargs=True)
