"""From activations to features a person can search, read and check."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

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

__getattr__ = on_demand(__name__)
