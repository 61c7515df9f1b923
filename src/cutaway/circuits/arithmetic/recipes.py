"""What is trained: every published configuration by its name, the presets of the cards, and small ones for a CPU.

A published name such as ``ins1_mix_d6_l3_h4_t40K_s372001`` says: how it was initialised (ins1: copied once from
an addition model), operation, digits, layers, heads, thousands of steps, seed; ``_gf_`` means Grokfast. One thing
differs from the published shapes: their width is 510 for any number of heads, while a Hugging Face GPT-2 needs a
width that the heads divide, so it is heads * floor(512 / heads) here (510 with 3 heads, 512 with 4).
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cutaway.circuits.arithmetic.format import Format
from cutaway.errors import UsageError, nearest

Operation = Literal["add", "sub", "mix"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run; the same recipe on the same machine gives the same losses."""

    name: str
    digits: int
    operation: Operation = "add"
    signed: bool = True
    """True: the format of addition-subtraction; False: that of addition-transformers."""
    layers: int = 1
    heads: int = 3
    d_model: int = 510
    steps: int = 5000
    batch: int = 64
    lr: float = 8e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 10
    """Steps of linear warm-up."""
    warmup_from: float = 0.0
    """Factor of the learning rate at step 0."""
    cosine: bool = False
    """True: cosine to zero after the warm-up; False: constant."""
    enriched_batches: float = 0.2
    enriched_cells: float = 0.2
    subtractions: float = 0.66
    """Share of subtractions when both operations are trained."""
    insert: int = 0
    """0: fresh start. From an addition model: 1 copied once, 2 its attention again every 100 steps, 3 its MLPs too,
    4 everything again every step."""
    grokfast: bool = False
    """Add an average of past gradients (alpha 0.98, lambda 2); batches then mix both operations."""
    seed: int = 129000

    def __post_init__(self) -> None:
        for key in ("digits", "layers", "heads", "d_model", "steps", "batch"):
            if getattr(self, key) < 1:
                raise UsageError(f"{self.name}: {key}={getattr(self, key)} must be at least 1")
        if self.d_model % self.heads:
            raise UsageError(f"{self.name}: d_model={self.d_model} is not divisible by heads={self.heads}")
        if self.operation not in ("add", "sub", "mix"):
            raise UsageError(f"{self.name}: operation={self.operation!r}; choose add, sub or mix")
        if self.operation != "add" and not self.signed:
            raise UsageError(f"{self.name}: {self.operation} needs signed=True, answers can be negative")
        if self.insert not in range(5):
            raise UsageError(f"{self.name}: insert={self.insert}; 0 to 4")
        if self.insert and self.operation == "add":
            raise UsageError(f"{self.name}: an addition model is not initialised from another one; insert=0")
        if not 0 <= self.warmup <= self.steps:
            raise UsageError(f"{self.name}: warmup={self.warmup} lies outside 0..steps={self.steps}")

    @property
    def format(self) -> Format:
        return Format(self.digits, self.signed)

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the name."""
        content = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def parent(self) -> "Recipe | None":
        """The addition model that an inserted one starts from: same digits, width and heads, 2 layers."""
        if not self.insert:
            return None
        if self.name == "small-mixed":
            small = PRESETS["small-2-layers"]
            shorter = min(self.steps, small.steps)
            return replace(small, steps=shorter, warmup=min(small.warmup, shorter))
        steps = {5: 15_000, 6: 15_000, 10: 40_000}.get(self.digits, 45_000 if self.digits < 10 else 50_000)
        plain = replace(self, operation="add", insert=0, grokfast=False, layers=min(2, self.layers))
        steps = min(steps, self.steps)
        return replace(plain, name=f"parent_of_{self.name}", steps=steps, warmup=self.warmup * steps // self.steps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_NAME = re.compile(
    r"(?:ins(?P<insert>[1-4])_)?(?P<operation>add|sub|mix)_d(?P<digits>\d+)_l(?P<layers>\d+)_h(?P<heads>\d+)"
    r"_t(?P<steps>\d+)K(?P<gf>_gf)?_s(?P<seed>\d+)(?P<gf2>_gf)?"
)

PUBLISHED = (
    *("add_d5_l1_h3_t15K_s372001", "add_d5_l1_h3_t30K_s372001", "add_d5_l2_h3_t15K_s372001"),
    *("add_d5_l2_h3_t40K_s372001", "add_d6_l2_h3_t15K_s372001", "add_d6_l2_h3_t20K_s173289"),
    *("add_d6_l2_h3_t20K_s572091", "add_d6_l2_h3_t40K_s372001", "add_d7_l2_h3_t45K_s173289"),
    *("add_d8_l2_h3_t45K_s173289", "add_d9_l2_h3_t45K_s173289", "add_d10_l2_h3_t40K_s572091"),
    *("add_d10_l2_h3_t40K_gf_s572091", "add_d11_l2_h3_t50K_s572091", "add_d12_l2_h3_t50K_s572091"),
    *("add_d13_l2_h3_t50K_s572091", "add_d14_l2_h3_t60K_s572091", "add_d15_l2_h3_t80K_s572091"),
    *("add_d20_l2_h3_t80K_s572091", "sub_d6_l2_h3_t30K_s372001", "sub_d10_l2_h3_t75K_s173289"),
    *("sub_d10_l2_h3_t75K_gf_s173289", "mix_d5_l3_h4_t40K_s372001", "mix_d6_l3_h4_t40K_s372001"),
    *("mix_d7_l3_h4_t50K_s372001", "mix_d8_l3_h4_t60K_s173289", "mix_d9_l3_h4_t60K_s173289"),
    *("mix_d10_l3_h4_t75K_s173289", "mix_d10_l3_h4_t75K_gf_s173289", "mix_d11_l3_h4_t80K_s572091"),
    *("mix_d12_l3_h4_t85K_s572091", "mix_d13_l3_h4_t85K_s572091", "ins1_mix_d5_l2_h3_t40K_s572091"),
    *("ins1_mix_d6_l2_h3_t40K_s572091", "ins1_mix_d6_l3_h3_t40K_s572091", "ins1_mix_d6_l3_h3_t80K_s572091"),
    *("ins1_mix_d6_l3_h4_t40K_s173289", "ins1_mix_d6_l3_h4_t40K_s372001", "ins1_mix_d6_l3_h4_t50K_s572091"),
    *("ins1_mix_d7_l3_h4_t50K_s572091", "ins1_mix_d8_l3_h4_t70K_s572091", "ins1_mix_d9_l3_h4_t70K_s572091"),
    *("ins1_mix_d10_l3_h3_t50K_s572091", "ins1_mix_d10_l3_h3_t50K_gf_s572091", "ins1_mix_d11_l3_h4_t75K_s572091"),
    *("ins1_mix_d12_l3_h4_t85K_s572091", "ins2_mix_d6_l4_h4_t40K_s372001", "ins3_mix_d6_l4_h3_t40K_s372001"),
    *("sub_d5_l2_h3_t30K_s372001", "sub_d6_l2_h3_t30K_s572091", "sub_d8_l2_h3_t50K_s173289"),
    *("sub_d8_l2_h3_t50K_s371793", "sub_d12_l2_h3_t75K_s371793"),
)
"""The published inventory. The paper speaks of 49 models; its repositories hold these, so all of the 49 are here."""

_TINY = Recipe("tiny", 5, signed=False, d_model=96, lr=2e-3, steps=4500, warmup=100, cosine=True, seed=0)
_SMALL = replace(
    _TINY, name="small-2-layers", signed=True, layers=2, d_model=72, enriched_batches=0.4, enriched_cells=0.4
)

PRESETS: dict[str, Recipe] = {
    each.name: each
    for each in (
        Recipe("paper", 5, signed=False),
        _TINY,
        _SMALL,
        replace(_SMALL, name="small-1-layer", layers=1),
        replace(_SMALL, name="small-subtraction", operation="sub", steps=6000),
        replace(_SMALL, name="small-mixed", operation="mix", layers=3, steps=6000, insert=1, subtractions=0.8),
    )
}
"""Presets by name. ``paper`` has the published settings of the one-layer model; the others learn in minutes on one
core, with a narrower model and a learning rate 25 times higher. The 1- and 2-layer ones see the same questions."""


def recipe(name: str, **changes: Any) -> Recipe:
    """A preset, or a published configuration read from its name; ``changes`` replace fields.

    >>> recipe("add_d6_l2_h3_t15K_s372001").steps
    15000
    """
    found = PRESETS.get(name) or _published(name)
    unknown = sorted(set(changes) - set(found.to_dict()))
    if unknown:
        raise UsageError(f"recipe {name!r}: no field {unknown[0]!r}{nearest(unknown[0], found.to_dict())}")
    return replace(found, **changes)


def _published(name: str) -> Recipe:
    read = _NAME.fullmatch(name)
    if read is None:
        hint = nearest(name, [*PRESETS, *PUBLISHED])
        raise UsageError(f"recipe {name!r}: no preset, and not of the form add_d6_l2_h3_t15K_s372001{hint}")
    heads, steps = int(read["heads"]), 1000 * int(read["steps"])
    if heads < 1:
        raise UsageError(f"recipe {name!r}: heads={heads} must be at least 1")
    insert = int(read["insert"] or 0)
    return Recipe(
        name,
        digits=int(read["digits"]),
        operation=read["operation"],  # type: ignore[arg-type]
        layers=int(read["layers"]),
        heads=heads,
        d_model=heads * (512 // heads),
        steps=steps,
        warmup=steps // 5,
        warmup_from=0.01,
        cosine=True,
        enriched_batches=0.4,
        enriched_cells=0.4,
        subtractions=0.8 if insert else 0.66,
        insert=insert,
        grokfast=bool(read["gf"] or read["gf2"]),
        seed=int(read["seed"]),
    )
