"""A linear probe as a thing of its own: where it reads, how it pools, what it says, when it raises an alarm.

    score = weight . activation + bias                      a logit where the probe was fitted by logistic regression

`fit_probe` standardises by the training rows and folds that into weight and bias, so that a probe reads raw
activations. `LinearProbe.alarmed` sets a threshold from rows of the class that is not watched for, with a stated
false-alarm rate that holds for any exchangeable new row (conformal). A probe with pooling ``mean`` or ``last`` scores
every token of a text with one product: pooling and a linear score change places (`LinearProbe.running`).
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.probes.pooled import Pooling

Family = Literal["logistic", "mean difference"]
SCHEMA = 1
_FILE, _TENSORS = "probe.json", "probe.safetensors"


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A direction with an offset at a site; positive scores mean ``concept``."""

    weight: Float[Tensor, " d"] = field(repr=False)
    bias: float
    site: str
    """As in `cutaway.model.sites`: ``resid_post.15``."""
    pooling: Pooling = "mean"
    """How the tokens of a text become the row that the probe was fitted on."""
    concept: str = ""
    """What a high score means."""
    threshold: float | None = None
    """Alarm above it; None until `alarmed` has set one."""
    false_alarms: float | None = None
    """Rate that the threshold keeps on new rows without the concept."""
    calibrated_on: int = 0
    """Rows without the concept that set the threshold."""
    model: str = ""
    fingerprint: str = ""
    """SHA-256 of the weights the probe was fitted on; empty for any."""

    def __post_init__(self) -> None:
        if self.weight.dim() != 1 or not len(self.weight):
            raise UsageError(f"weight of shape {list(self.weight.shape)}: one number for each feature")
        if not bool(torch.isfinite(self.weight).all()) or not math.isfinite(self.bias):
            raise UsageError("weight or bias is nan or infinite")
        if self.pooling not in get_args(Pooling):
            raise UsageError(f"pooling={self.pooling!r}{nearest(self.pooling, get_args(Pooling))}")
        if (self.threshold is None) != (self.false_alarms is None):
            raise UsageError("a threshold needs its false-alarm rate, and a rate its threshold; see alarmed")

    def __repr__(self) -> str:
        alarm = "no threshold" if self.threshold is None else f"alarm above {self.threshold:.3g}"
        rate = "" if self.false_alarms is None else f" at {100 * self.false_alarms:g}% false alarms"
        return f"LinearProbe({self.concept or 'probe'} at {self.site}, {self.pooling}, d {self.d}, {alarm}{rate})"

    @property
    def d(self) -> int:
        return len(self.weight)

    def scores(self, activations: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """Return one score for each row, whatever the leading axes; UsageError for another width or nan."""
        self._check(activations)
        return activations.to(self.weight.dtype) @ self.weight.to(activations.device) + self.bias

    def running(self, activations: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
        """Return the score of the text up to each token, as a monitor sees it while the text is written."""
        from cutaway.probes.pooled import running

        if self.pooling == "max":
            return self.scores(running(activations, "max"))
        each = self.scores(activations)
        if self.pooling != "mean":
            return each
        return each.cumsum(0) / torch.arange(1, len(each) + 1, device=each.device)

    def alarms(self, activations: Float[Tensor, "... d"]) -> Bool[Tensor, "..."]:
        """Return which rows are above the threshold; UsageError without one."""
        if self.threshold is None:
            raise UsageError("this probe has no threshold; set one with alarmed(rows without the concept, rate)")
        return self.scores(activations) > self.threshold

    def alarmed(self, negatives: Float[Tensor, "row d"], rate: float = 0.01) -> "LinearProbe":
        """Return the probe with the threshold that a new row like ``negatives`` passes with probability ``rate``.

        The rows must not be those the probe was fitted on. UsageError where they are too few for the rate.
        """
        from cutaway.probes.scoring import alarm_threshold

        if not 0 < rate < 1:
            raise UsageError(f"rate={rate}: between 0 and 1")
        threshold = alarm_threshold(self.scores(negatives).double().cpu().numpy(), rate)
        if threshold is None:
            raise UsageError(f"{len(negatives)} rows; a rate of {rate:g} needs {math.ceil(1 / rate) - 1} or more")
        return replace(self, threshold=threshold, false_alarms=rate, calibrated_on=len(negatives))

    def save(self, folder: str | Path) -> None:
        """Write ``probe.json`` and ``probe.safetensors`` into ``folder``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight.detach().cpu().contiguous()}, folder / _TENSORS)
        (folder / _FILE).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the weight."""
        plain = asdict(replace(self, weight=torch.zeros(1)))
        del plain["weight"]
        return {"schema": SCHEMA, "kind": "linear", "d": self.d, **plain}

    def _check(self, activations: Tensor) -> None:
        if activations.shape[-1] != self.d:
            raise UsageError(f"activations have {activations.shape[-1]} features; this probe reads {self.d}")
        if not bool(torch.isfinite(activations).all()):
            raise UsageError("activations contain nan or infinity")


def load_probe(folder: str | Path) -> LinearProbe:
    """Read what `LinearProbe.save` wrote; CutawayError where files are missing, damaged or do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, known = Path(folder), {each.name for each in fields(LinearProbe)} - {"weight"}
    try:
        about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if about["schema"] != SCHEMA or about["kind"] != "linear":
            raise CutawayError(f"{folder.name}: {about['kind']!r} of schema {about['schema']} is not read here")
        weight = load_file(folder / _TENSORS)["weight"]
        if len(weight) != about["d"]:
            raise CutawayError(f"{folder.name}: {len(weight)} weights where {about['d']} are stated")
        return LinearProbe(weight, **{name: about[name] for name in sorted(known)})
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise CutawayError(f"{folder} holds no probe written by Cutaway: {error}") from error


def fit_probe(
    x: Float[Tensor, "row d"],
    y: Bool[Tensor, " label"],
    site: str,
    pooling: Pooling = "mean",
    *,
    family: Family = "logistic",
    strength: float = 0.01,
    concept: str = "",
) -> LinearProbe:
    """Return a probe for the rows where ``y`` is true.

    ``strength`` is the inverse penalty on standardised features. ``mean difference`` takes the difference of the
    class means, with the offset that puts 0 half way. A feature that never changes gets weight 0. UsageError for nan,
    one class only, or lengths that differ.
    """
    check_rows(x, y)
    values = x.double()
    centre, scale = values.mean(0), values.std(0, correction=0)
    varies = scale > 1e-9 * (1 + centre.abs())
    z = torch.where(varies, (values - centre) / scale.where(varies, 1.0), 0.0)
    if family == "mean difference":
        direction = z[y].mean(0) - z[~y].mean(0)
        offset = -float(direction @ (z[y].mean(0) + z[~y].mean(0)) / 2)
    elif family == "logistic":
        direction, offset = _logistic(z, y, strength)
    else:
        raise UsageError(f"family={family!r}{nearest(family, get_args(Family))}")
    weight = torch.where(varies, direction / scale.where(varies, 1.0), 0.0)
    return LinearProbe(weight.float(), offset - float(weight @ centre), site, pooling, concept)


def check_rows(x: Float[Tensor, "row d"], y: Bool[Tensor, " label"]) -> None:
    """UsageError for rows and labels that nothing can be fitted on."""
    if len(x) != len(y):
        raise UsageError(f"{len(x)} rows and {len(y)} labels: give one label for each row")
    if not bool(torch.isfinite(x).all()):
        raise UsageError("activations contain nan or infinity")
    positive = int(y.sum())
    if positive in {0, len(y)}:
        raise UsageError(f"{positive} of {len(y)} labels are positive; both classes are needed")


def _logistic(z: Float[Tensor, "row d"], y: Bool[Tensor, " row"], strength: float) -> tuple[Tensor, float]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not strength > 0:
        raise UsageError(f"strength={strength}: above 0")
    with warnings.catch_warnings():
        # separable rows never converge; the penalty decides where they stop
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = LogisticRegression(C=strength, max_iter=500).fit(z.cpu().numpy(), y.cpu().numpy())
    return torch.from_numpy(fit.coef_[0]).to(z), float(fit.intercept_[0])
