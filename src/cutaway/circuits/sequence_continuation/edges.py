"""Which connections between a circuit's nodes carry the answer: path patching, one sender and one input at a time.

All runs have the nodes outside the circuit at their reference. For a sender s and a receiver r in a later place:

1. d_s = what s adds to the stream on the corrupted prompts minus what it adds on the clean ones. A head's share is the
   change of its attention's output when that head alone is exchanged, so norms after the attention are in it.
2. Every other node is held at its clean value, so the stream at r changes by d_s alone. It is given to one input of r:
   the query, the key or the value of a head, an MLP, or the final residual.
3. What r then gives is put into a clean run, and everything after it follows. The metric of that run over the
   circuit's own is the ratio; below ``threshold`` the connection is kept.

With shared keys and values (grouped-query attention) the corrupted key is read by this one head only.
The embedding is a sender too, so that nodes that read the tokens directly are not taken for orphans.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.circuits.nodes import NodeRunner, Overwrite
from cutaway.circuits.sequence_continuation.method import Bench, Report
from cutaway.circuits.sequence_continuation.result import Edge, EdgeCircuit, Input
from cutaway.errors import UsageError
from cutaway.model import EditError, Patch, Replace
from cutaway.model.model import Batch

Streams = Float[Tensor, "sender n pos d_model"]


def prune_edges(
    bench: Bench, names: Sequence[str], *, threshold: float = 0.8, report: Report | None = None
) -> EdgeCircuit:
    """Test every possible connection between the nodes ``names``; on Ctrl-C return those tested so far."""
    if not 0 < threshold < 1:
        raise UsageError(f"threshold={threshold}: share of the metric, above 0 and below 1")
    nodes, keep = bench.nodes, bench.nodes.keep(names)
    kept = nodes.kept(keep)
    base = float(bench.differences(keep[None]).mean())
    if base <= 0:
        raise UsageError(
            f"{bench.rows.task}: these {len(kept)} nodes alone have a metric of {base:.3g}; no ratio to it"
        )
    tested: list[Edge] = []
    complete = True
    try:
        paths = _Paths(bench, keep, kept)
        for done, receiver in enumerate([*kept, "final"]):
            for by, senders, logits in paths.into(receiver):
                ratios = logits.mean(-1) / base
                tested += [Edge(s, receiver, by, float(r)) for s, r in zip(senders, ratios, strict=True)]
            if report is not None:
                report(done + 1, len(kept) + 1, f"{bench.rows.task}: connections into {receiver}")
    except KeyboardInterrupt:
        complete = False
    entered = {edge.receiver for edge in tested if edge.ratio < threshold}
    orphans = tuple(name for name in kept if name not in entered) if complete else ()
    return EdgeCircuit(bench.rows.task, tuple(tested), float(threshold), orphans, complete)


class _Paths:
    """The clean and the corrupted run of one circuit, and what each sender's exchange does to a receiver."""

    def __init__(self, bench: Bench, keep: Bool[Tensor, " nodes"], kept: Sequence[str]) -> None:
        self.bench, self.keep, self.kept = bench, keep, kept
        self.model, self.runner, self.nodes = bench.model, bench.runner, bench.nodes
        self.layout = self.model.layout
        self.parallel = bool(getattr(self.layout.blocks[0], "use_parallel_residual", False))
        self.clean = self._values(bench.runner)
        self.change = self._changes(self._values(NodeRunner(self.model, bench.rows.corrupted, bench.runner.reference)))
        self._layer_heads: tuple[int, dict[str, Tensor]] = (-1, {})

    def into(self, receiver: str) -> Iterator[tuple[Input, list[str], Float[Tensor, "sender n"]]]:
        """For each input of ``receiver``: its name, the senders before it, and the logit differences."""
        senders = [name for name in ("embed", *self.kept) if self._before(name, receiver)]
        streams = torch.stack([self.change[name] for name in senders])
        if receiver == "final":
            last = self.nodes.n_layers - 1
            yield "final", senders, self._run(Overwrite(f"resid_post.{last}", self._end() + streams))
        elif receiver.startswith("mlp_out"):
            layer = self.nodes.layer(receiver)
            middle = self._middle(self.runner, layer, self.clean)
            changed = torch.stack([self._mlp(layer, middle + stream) for stream in streams])
            yield "mlp", senders, self._run(Overwrite(receiver, changed))
        else:
            layer, head = self.nodes.layer(receiver), int(receiver.split(".")[2])
            if self._layer_heads[0] != layer:
                self._layer_heads = (layer, self._heads(layer, streams))
            inputs: tuple[Input, ...] = ("q", "k", "v")
            for by in inputs:
                value = self._layer_heads[1][by][..., head, :]
                yield by, senders, self._run(Overwrite(receiver, value))

    def _before(self, sender: str, receiver: str) -> bool:
        """Whether the receiver reads what the sender adds."""
        if sender == "embed" or receiver == "final":
            return True
        first, second = self.nodes.layer(sender), self.nodes.layer(receiver)
        inside = sender.startswith("z.") and receiver.startswith("mlp_out.") and not self.parallel
        return first < second or (first == second and inside)

    def _run(self, overwrite: Overwrite) -> Float[Tensor, "sender n"]:
        sets = self.keep.repeat(len(overwrite.value), 1)
        return self.runner.run(sets, self.bench.read, overwrite)

    @torch.no_grad()
    def _values(self, runner: NodeRunner) -> dict[str, Tensor]:
        """What nodes give in this runner's rows: kept heads and MLPs by name, all heads of a layer as ``z.L``."""
        found = {"embed": runner.residual(self.keep, 0)}
        for layer in range(self.nodes.n_layers):
            inside = self.keep.view(self.nodes.n_layers, -1)[layer].to(runner.ids.device)
            found[f"z.{layer}"] = runner.reference.z[:, layer]
            if bool(inside[:-1].any()):
                with self.model.started(layer, runner.residual(self.keep, layer)):
                    z = self.model.capture(_batch(runner.ids), f"z.{layer}")[f"z.{layer}"]
                found[f"z.{layer}"] = torch.where(inside[:-1, None], z, found[f"z.{layer}"])
                found |= {name: z[:, :, int(name.split(".")[2])] for name in self.kept if _is_head(name, layer)}
            if bool(inside[-1]):
                found[f"mlp_out.{layer}"] = self._mlp(layer, self._middle(runner, layer, found))
        return found

    @torch.no_grad()
    def _changes(self, other: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each sender's exchange adds to the stream."""
        found = {}
        for name in ("embed", *self.kept):
            if not name.startswith("z."):
                found[name] = other[name] - self.clean[name]
                continue
            layer, head = self.nodes.layer(name), int(name.split(".")[2])
            z = self.clean[f"z.{layer}"]
            changed = z.clone()
            changed[:, :, head] = other[name]
            found[name] = self._write(layer, changed) - self._write(layer, z)
        return found

    def _write(self, layer: int, z: Float[Tensor, "rows pos head d_head"]) -> Float[Tensor, "rows pos d_model"]:
        """What attention adds to the stream for these head outputs."""
        attn, port = self.layout.attn(layer), self.layout.port("attn_out", layer)
        output: Tensor = attn.get_submodule(self.layout.shape.o)(z.flatten(-2).contiguous())
        return output if port.module is attn else port.module(output)

    @torch.no_grad()
    def _middle(self, runner: NodeRunner, layer: int, values: dict[str, Tensor]) -> Float[Tensor, "n pos d_model"]:
        """The stream that an MLP's norm reads."""
        resid = runner.residual(self.keep, layer)
        return resid if self.parallel else resid + self._write(layer, values[f"z.{layer}"])

    @torch.no_grad()
    def _end(self) -> Float[Tensor, "n pos d_model"]:
        """The stream after the last block, in the clean run."""
        last = self.nodes.n_layers - 1
        mlp = self.clean.get(f"mlp_out.{last}", self.runner.reference.mlp[:, last])
        return self.runner.residual(self.keep, last) + self._write(last, self.clean[f"z.{last}"]) + mlp

    @torch.no_grad()
    def _mlp(self, layer: int, middle: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos d_model"]:
        """What an MLP gives when its norm reads ``middle``."""
        batch, site = _batch(self.runner.ids), f"mlp_out.{layer}"
        if self.parallel:
            with self.model.started(layer, middle):
                return self.model.capture(batch, site)[site]
        # From an empty stream, so that what enters the MLP is the edit's value to the last bit.
        with (
            suppress(EditError),
            self.model.started(layer, torch.zeros_like(middle)),
            self.model.edited(Replace(f"resid_mid.{layer}", middle)),
        ):
            value = self.model.capture(batch, site)[site]
        return value

    @torch.no_grad()
    def _heads(self, layer: int, streams: Streams) -> dict[str, Float[Tensor, "sender n pos head d_head"]]:
        """What the heads of a layer give when ``streams`` are added to their queries, keys or values alone."""
        resid = self.runner.residual(self.keep, layer)
        found: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
        for part in streams.split(self.runner.room):
            batch, rows = _batch(self.runner.ids.repeat(len(part), 1)), resid.repeat(len(part), 1, 1)
            with self.model.started(layer, rows + part.flatten(0, 1)):
                changed = self.model.capture(batch, [f"{by}.{layer}" for by in found])
            for by, values in found.items():
                # An input that a sender does not change is no mistake here; what was captured stands.
                patch = Patch(f"{by}.{layer}", changed[f"{by}.{layer}"])
                with suppress(EditError), self.model.started(layer, rows), self.model.edited(patch):
                    z = self.model.capture(batch, f"z.{layer}")[f"z.{layer}"]
                values.append(z.unflatten(0, (len(part), -1)))
        return {by: torch.cat(values) for by, values in found.items()}


def _is_head(name: str, layer: int) -> bool:
    return name.startswith(f"z.{layer}.")


def _batch(ids: Tensor) -> Batch:
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool))
