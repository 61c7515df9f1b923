"""Two invented worlds in one small model, with a dictionary of its MLP's output: what an erasure is tested on.

The model has one layer, with an MLP as wide as SmolLM2's. Of two layers each writes answers, and with a quarter of the
neurons most serve both worlds: there no setting took one world and left the other on half of the seeds tried.
Lessons to relearn from share no answer with what is asked then (`concepts.planted`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cutaway.editing.concepts import Concept, planted
from cutaway.editing.pisces.erasing import Erased, erase, find_features
from cutaway.editing.pisces.method import Dictionaries
from cutaway.features import Provenance, SparseDictionary, train_dictionary
from cutaway.features import TrainConfig as DictionaryConfig
from cutaway.model import Model
from cutaway.planted.concepts import taught, world
from cutaway.training import TrainConfig

TAUS, MUS = (0.6, 0.5, 0.4, 0.3, 0.2), (0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""The grid for models as small as this one."""
LAYERS, D_MLP = 1, 1536
BASELINE = TrainConfig(3e-4, 16, steps=80, schedule="constant", bucket=1, precision="float32", probe_every=1)
RELEARN = replace(BASELINE, steps=32, probe_every=8)


@dataclass(frozen=True)
class Worlds:
    """A model that knows both worlds, and what it takes to remove one."""

    model: Model
    concept: Concept
    dictionaries: Dictionaries


def two_worlds(people: int = 24, relations: int = 4, *, d_model: int = 128, steps: int = 300, seed: int = 0) -> Worlds:
    """Train the model and the dictionaries; ``seed`` draws facts, weights and order."""
    gone, kept = world("A", people, relations, seed=seed), world("B", people, relations, seed=seed)
    model = taught([gone, kept], steps=steps, layers=LAYERS, d_model=d_model, d_mlp=D_MLP, seed=seed)
    concept = planted(gone, kept)
    layers = range(model.n_layers)
    fits = {layer: fitted(model, concept.texts, layer, 2 * d_model, seed=seed) for layer in layers}
    return Worlds(model, concept, fits)


def fitted(
    model: Model, texts: tuple[str, ...], layer: int, n_latents: int, *, k: int = 16, steps: int = 300, seed: int = 0
) -> SparseDictionary:
    """Return a TopK dictionary of the MLP's output at ``layer`` on ``texts``."""
    site = f"mlp_out.{layer}"
    with torch.no_grad():
        found = model.capture(model.batch([model.encode(text) for text in texts]), site, special=True).flat(site)
    generator = torch.Generator().manual_seed(seed)

    def draws() -> Iterator[Tensor]:
        for _ in range(steps):
            yield found[torch.randint(len(found), (512,), generator=generator)]

    config = DictionaryConfig(n_latents, k=k, batch=512, rate=3e-3, warm_up=20, steps=steps, seed=seed)
    about = Provenance(model=model.name, fingerprint=model.fingerprint, site=site)
    return train_dictionary(draws(), config, provenance=about).dictionary


def erase_world(
    worlds: Worlds,
    *,
    limits: tuple[float, float, float] = (0.1, 0.9, 0.95),
    seed: int = 0,
    trained: bool = True,
) -> Erased:
    """Remove world A; ``trained`` adds gradient ascent and relearning."""
    features = find_features(worlds.model, worlds.dictionaries, worlds.concept, taus=TAUS, mus=MUS)
    return erase(
        worlds.model,
        worlds.dictionaries,
        worlds.concept,
        features,
        taus=TAUS,
        mus=MUS,
        limits=limits,
        baseline=BASELINE if trained else None,
        relearn=RELEARN if trained else None,
        seed=seed,
    )
