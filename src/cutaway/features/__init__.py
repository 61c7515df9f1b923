"""From activations to features a person can search, read and check."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.features.corpus import Corpus, open_corpus
    from cutaway.features.dictionary import Codes, Dictionary, Provenance, check_model
    from cutaway.features.evaluate import Evaluation, spliced_logits
    from cutaway.features.evaluate import evaluate as evaluate_dictionary
    from cutaway.features.formats import read_dictionary, write_dictionary
    from cutaway.features.harvest import Harvest, Job, Rows, mixed, open_harvest, provenance_of, stream, train_all
    from cutaway.features.harvest import harvest as harvest_activations
    from cutaway.features.neuronpedia import FeatureRecord, read_neuronpedia, write_neuronpedia
    from cutaway.features.records import feature_records
    from cutaway.features.sparse import SparseDictionary, load_dictionary
    from cutaway.features.train import TrainConfig, Trained
    from cutaway.features.train import train as train_dictionary

__all__ = [
    "Codes",
    "Corpus",
    "Dictionary",
    "Evaluation",
    "FeatureRecord",
    "Harvest",
    "Job",
    "Provenance",
    "Rows",
    "SparseDictionary",
    "TrainConfig",
    "Trained",
    "check_model",
    "evaluate_dictionary",
    "feature_records",
    "harvest_activations",
    "load_dictionary",
    "mixed",
    "open_corpus",
    "open_harvest",
    "provenance_of",
    "read_dictionary",
    "read_neuronpedia",
    "spliced_logits",
    "stream",
    "train_all",
    "train_dictionary",
    "write_dictionary",
    "write_neuronpedia",
]

_PLACES = {
    "Corpus": ("corpus", "Corpus"),
    "open_corpus": ("corpus", "open_corpus"),
    "Codes": ("dictionary", "Codes"),
    "Dictionary": ("dictionary", "Dictionary"),
    "Provenance": ("dictionary", "Provenance"),
    "check_model": ("dictionary", "check_model"),
    "Evaluation": ("evaluate", "Evaluation"),
    "evaluate_dictionary": ("evaluate", "evaluate"),
    "spliced_logits": ("evaluate", "spliced_logits"),
    "read_dictionary": ("formats", "read_dictionary"),
    "write_dictionary": ("formats", "write_dictionary"),
    "Harvest": ("harvest", "Harvest"),
    "Job": ("harvest", "Job"),
    "Rows": ("harvest", "Rows"),
    "harvest_activations": ("harvest", "harvest"),
    "mixed": ("harvest", "mixed"),
    "open_harvest": ("harvest", "open_harvest"),
    "provenance_of": ("harvest", "provenance_of"),
    "stream": ("harvest", "stream"),
    "train_all": ("harvest", "train_all"),
    "FeatureRecord": ("neuronpedia", "FeatureRecord"),
    "read_neuronpedia": ("neuronpedia", "read_neuronpedia"),
    "write_neuronpedia": ("neuronpedia", "write_neuronpedia"),
    "feature_records": ("records", "feature_records"),
    "SparseDictionary": ("sparse", "SparseDictionary"),
    "load_dictionary": ("sparse", "load_dictionary"),
    "TrainConfig": ("train", "TrainConfig"),
    "Trained": ("train", "Trained"),
    "train_dictionary": ("train", "train"),
}
"""Public name to the module and the name it has there: studies are listed without what the methods import."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inside = _PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), inside)
