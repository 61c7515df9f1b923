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
    """A probe under the name that answers use for it."""

    name: str
    probe: LinearProbe


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
        self._seen: dict[str, Tensor] = {}
        self._weights: dict[tuple[int, ...], list[tuple[str, list[int], Tensor, Tensor]]] = {}

    @contextmanager
    def on(self, monitors: Iterable[Monitor]) -> Iterator[None]:
        """Note the values at the monitors' sites in every forward inside the block."""
        # Not `Model.capture`: that runs a forward of its own, and these values come from the engine's decode steps.
        sites = {monitor.probe.site: site_of(self._model, monitor.probe) for monitor in monitors}
        handles = [self._hook(name, site) for name, site in sites.items()]
        self._weights.clear()
        try:
            yield
        finally:
            self._seen.clear()
            for handle in handles:
                handle.remove()

    def scores(self, wanted: Sequence[tuple[Monitor, ...]]) -> list[dict[str, float | None]]:
        """For each row of the last forward, in its order, the score of its newest token under each of its monitors.

        None stands for a number that is no longer finite.
        """
        found: list[dict[str, float | None]] = [{} for _ in wanted]
        rows: dict[tuple[int, ...], list[int]] = {}
        sets: dict[tuple[int, ...], tuple[Monitor, ...]] = {}
        for row, monitors in enumerate(wanted):
            if monitors:
                key = tuple(id(monitor) for monitor in monitors)
                rows.setdefault(key, []).append(row)
                sets[key] = monitors
        for key, members in rows.items():
            for site, places, weight, bias in self._plan(key, sets[key]):
                value = self._seen[site]
                mine = value if len(members) == len(value) else value[members]
                numbers = (mine[:, -1].flatten(1).float() @ weight + bias).tolist()
                for row, scores in zip(members, numbers, strict=True):
                    for place, score in zip(places, scores, strict=True):
                        found[row][sets[key][place].name] = score if math.isfinite(score) else None
        return found

    def _plan(self, key: tuple[int, ...], monitors: tuple[Monitor, ...]) -> list[tuple[str, list[int], Tensor, Tensor]]:
        """Per site: which monitors read there, their weights [d monitor] and biases [monitor]."""
        if key not in self._weights:
            by_site: dict[str, list[int]] = {}
            for place, monitor in enumerate(monitors):
                by_site.setdefault(monitor.probe.site, []).append(place)
            device = self._model.device
            self._weights[key] = [
                (
                    site,
                    places,
                    torch.stack([monitors[place].probe.weight.float() for place in places], 1).to(device),
                    torch.tensor([monitors[place].probe.bias for place in places], device=device),
                )
                for site, places in by_site.items()
            ]
        return self._weights[key]

    def _hook(self, name: str, site: Site) -> Any:
        port = self._model.layout.port(site.kind, site.layer)

        def note(tensor: Tensor, given: Tensor) -> None:
            value = port.read(tensor, given)
            self._seen[name] = value if site.head is None else value[:, :, site.head]

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = module_input(args, kwargs)
            note(tensor, tensor)

        def after(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            note(output[0] if isinstance(output, tuple) else output, module_input(args, kwargs))

        if port.side == "in":
            return port.module.register_forward_pre_hook(before, with_kwargs=True)
        return port.module.register_forward_hook(after, with_kwargs=True)
