"""Models whose inner truth is known, for calibrating methods.

Each function builds a real ``transformers`` model with hand-set weights and a real tokenizer, wraps it in
``cutaway.model.Model`` and returns a frozen dataclass with ``.model`` and ``.truth``. Nothing is trained, so
the truth is exact, and nothing in the model marks it as planted: it is saved, batched, cached, captured and
edited like any other.

    reasoner          writes arguments; answer odds at every word are known exactly (anchors, branches)
    induction         completes repeated sequences with two known heads (circuits, attention)
    linear_direction  one direction carries a concept and moves a logit difference (probes, steering)
    null_model        random weights and labels: nothing to find (false-positive rates)

``reasoner`` has its own nulls: ``null=True`` (nothing before the digit matters) and ``no_effect=True``
(nothing matters at all).

To add the planted model of another method, write one module here with

- a plain function, explicit keywords, seed last, that returns a frozen dataclass with ``.model`` and
  ``.truth``;
- a truth that states what the method should report, in the method's own terms (heads, sites, rates), never
  how to find it;
- a null: an argument under which the truth is empty;
- weights from ``build``: ``blank_llama`` starts from zeros, ``norm_gain`` makes a norm the identity,
  ``word_tokenizer`` gives each word one token;
- tests that compare the model with the truth at every state that it can reach, and its inclusion in the
  shared suite of the test folder (save and load, padding, cache, batch).

Random-looking weights come from a local generator; building a model leaves the global random state alone.
"""

from cutaway.planted.direction import DirectionTruth, LinearDirection, linear_direction
from cutaway.planted.induction import Induction, InductionTruth, induction
from cutaway.planted.null import NullModel, NullTruth, null_model
from cutaway.planted.process import EXACT
from cutaway.planted.reasoner import Reasoner, ReasonerTruth, reasoner

__all__ = [
    "EXACT",
    "DirectionTruth",
    "Induction",
    "InductionTruth",
    "LinearDirection",
    "NullModel",
    "NullTruth",
    "Reasoner",
    "ReasonerTruth",
    "induction",
    "linear_direction",
    "null_model",
    "reasoner",
]
