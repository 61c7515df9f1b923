"""The method on vectors: a two-layer trunk that knows both labels, a new head, labels that are tied in training.

1. The trunk learns both labels, drawn independently.
2. The direction is the difference of class means of the unwanted label at the trunk's output.
3. A new head learns the tied label: with nothing removed, a random direction, or the concept removed from the trunk's
   output; with the trunk frozen or training along.
   *Re-estimated*: the direction is found again at every step. *Kept*: as found in the tuned trunk, it is removed in the
   test too.
4. The test's labels are reversed: following the louder rule gives accuracy 0.

Source: card caft, At small scale.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cutaway.finetuning.arms import Arms, gather
from cutaway.planted.spurious import Law, SpuriousVectors, spurious_vectors

ROWS, TEST, WIDTH = 512, 1000, 32
TRUNK_RATE, HEAD_RATE = 3e-3, 1e-2
CONTROLS = ("none", "random", "test only", "test only frozen")


@dataclass(frozen=True)
class _Task:
    law: SpuriousVectors
    seed: int

    def draw(self, n: int, law: Law, part: int) -> tuple[Tensor, Tensor, Tensor]:
        x, wanted, unwanted = self.law.draw(n, law, self.seed * 10 + part)
        return torch.from_numpy(x), torch.from_numpy(wanted).float(), torch.from_numpy(unwanted).float()


def toy_arms(
    repeats: int = 8, *, steps: int = 150, seed: int = 0, report: Callable[[int, int], None] = lambda done, total: None
) -> Arms:
    """Return accuracy on reversed and on tied test rows for each arm, one repeat a draw of everything."""
    runs = []
    complete = True
    try:
        for repeat in range(repeats):
            report(repeat, repeats)
            runs.append(_repeat(_Task(spurious_vectors(WIDTH, seed + repeat), seed + repeat), steps))
    except KeyboardInterrupt:
        complete = False
    return Arms(gather(runs, CONTROLS), {"reversed": TEST, "tied": TEST}, complete)


def _repeat(task: _Task, steps: int) -> Mapping[str, Mapping[str, float]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        trunk = _trunk(task, steps)
        concept = class_difference(trunk, task, part=1)
        noise = torch.randn(1, WIDTH)
        found = {}
        plain = {frozen: _tuned(trunk, task, steps, None, frozen) for frozen in (False, True)}
        found["none"] = _measured(*plain[False], task, None)
        found["random"] = _measured(*_tuned(trunk, task, steps, _unit(noise), False), task, None)
        tuned = _tuned(trunk, task, steps, concept, False)
        found["ablation"] = _measured(*tuned, task, None)
        found["ablation kept"] = _measured(*tuned, task, class_difference(tuned[0], task, part=1))
        found["ablation frozen"] = _measured(*_tuned(trunk, task, steps, concept, True), task, None)
        moving = _tuned(trunk, task, steps, concept, False, every=1)
        found["re-estimated"] = _measured(*moving, task, None)
        found["re-estimated kept"] = _measured(*moving, task, class_difference(moving[0], task, part=1))
        found["test only"] = _measured(*plain[False], task, class_difference(plain[False][0], task, part=1))
        found["test only frozen"] = _measured(*plain[True], task, concept)
        return found


def class_difference(trunk: nn.Module, task: _Task, part: int) -> Float[Tensor, "1 d"]:
    """Return the unit difference of class means of the unwanted label at the trunk's output."""
    x, _, unwanted = task.draw(ROWS, "independent", part)
    with torch.no_grad():
        h = trunk(x)
    return _unit((h[unwanted == 1].mean(0) - h[unwanted == 0].mean(0))[None])


def remove(h: Float[Tensor, "row d"], q: Float[Tensor, "k d"] | None) -> Float[Tensor, "row d"]:
    """Return ``h - (h Q') Q`` for orthonormal rows of ``q``."""
    return h if q is None else h - (h @ q.T) @ q


def _trunk(task: _Task, steps: int) -> nn.Sequential:
    trunk = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
    heads = nn.Linear(WIDTH, 2)
    x, wanted, unwanted = task.draw(ROWS, "independent", 0)
    labels = torch.stack([wanted, unwanted], 1)
    groups = [{"params": [*trunk.parameters(), *heads.parameters()], "lr": HEAD_RATE}]
    _descend(groups, lambda _: heads(trunk(x)), labels, steps)
    return trunk


def _tuned(
    trunk: nn.Sequential, task: _Task, steps: int, q: Tensor | None, frozen: bool, every: int = 0
) -> tuple[nn.Sequential, nn.Linear]:
    """Train a new head, and the trunk unless ``frozen``; ``every`` n steps find the direction again."""
    import copy

    trunk = copy.deepcopy(trunk)
    head = nn.Linear(WIDTH, 1)
    nn.init.zeros_(head.weight)
    x, wanted, _ = task.draw(ROWS, "tied", 2)
    now = [q]

    def scores(step: int) -> Tensor:
        if every and step and step % every == 0:
            now[0] = class_difference(trunk, task, part=1)
        return head(remove(trunk(x), now[0]))

    groups = [{"params": list(head.parameters()), "lr": HEAD_RATE}]
    if not frozen:
        groups.append({"params": list(trunk.parameters()), "lr": TRUNK_RATE})
    _descend(groups, scores, wanted[:, None], steps)
    return trunk, head


def _descend(groups: Sequence[dict[str, Any]], scores: Callable[[int], Tensor], labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(list(groups))
    for step in range(steps):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(scores(step), labels).backward()
        optimizer.step()


@torch.no_grad()
def _measured(trunk: nn.Sequential, head: nn.Linear, task: _Task, q: Tensor | None) -> dict[str, float]:
    found = {}
    for law, part in (("reversed", 3), ("tied", 4)):
        x, wanted, _ = task.draw(TEST, law, part)  # type: ignore[arg-type]
        found[law] = float(((head(remove(trunk(x), q))[:, 0] > 0).float() == wanted).float().mean())
    return found


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)
