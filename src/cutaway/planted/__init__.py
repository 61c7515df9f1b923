"""Models whose inner truth is known, for calibrating methods.

Each function builds a real ``transformers`` model with hand-set weights and a real tokenizer, wraps it in
``cutaway.model.Model`` and returns a frozen dataclass with ``.model`` and ``.truth``. Nothing is trained, so
the truth is exact, and nothing in the model marks it as planted: it is saved, batched, cached, captured and
edited like any other.

    reasoner          writes arguments; answer odds at every word are known exactly (anchors, branches)
    induction         completes repeated sequences with two known heads (circuits, attention)
    linear_direction  one direction carries a concept and moves a logit difference (probes, steering)
    null_model        random weights and labels: nothing to find (false-positive rates)
    branches          chains with a driver, a decorative reason, a stubborn idea, a hidden hint (thought branches)
    receiver          heads that read a plan sentence and copy it (receiver heads, suppression)
    cue_model         follows a hint and says so at known rates (monitorability); `Policy` is the same as a script
    dilution          a refusal check whose attention thins out with length, or does not (hijacking)
    echo              copies the style of its last answer with known probability (carry-over, geometry)
    lookup            answers by a circuit of nine known edges beside loud decoys (circuits)
    sequence          continues sequences by known heads, which two of three tasks share (sequence continuation)
    adder             adds digits by the published one-layer algorithm, its roles at known heads (arithmetic)

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

from cutaway.planted.adder import Adder, AdderTruth, adder
from cutaway.planted.branches import Branches, branches
from cutaway.planted.circuits import CircuitTruth, Lookup, lookup
from cutaway.planted.dilution import Dilution, DilutionTruth, dilution
from cutaway.planted.direction import DirectionTruth, LinearDirection, linear_direction
from cutaway.planted.echo import Echo, EchoTruth, echo
from cutaway.planted.induction import Induction, InductionTruth, induction
from cutaway.planted.null import NullModel, NullTruth, null_model
from cutaway.planted.policy import CueModel, Policy, PolicyTruth, cue_model
from cutaway.planted.process import EXACT
from cutaway.planted.reasoner import Reasoner, ReasonerTruth, reasoner
from cutaway.planted.receiver import Receiver, ReceiverTruth, receiver
from cutaway.planted.sequence import Sequence, SequenceTruth, sequence

__all__ = [
    "EXACT",
    "Adder",
    "AdderTruth",
    "Branches",
    "CircuitTruth",
    "CueModel",
    "Dilution",
    "DilutionTruth",
    "DirectionTruth",
    "Echo",
    "EchoTruth",
    "Induction",
    "InductionTruth",
    "LinearDirection",
    "Lookup",
    "NullModel",
    "NullTruth",
    "Policy",
    "PolicyTruth",
    "Reasoner",
    "ReasonerTruth",
    "Receiver",
    "ReceiverTruth",
    "Sequence",
    "SequenceTruth",
    "adder",
    "branches",
    "cue_model",
    "dilution",
    "echo",
    "induction",
    "linear_direction",
    "lookup",
    "null_model",
    "reasoner",
    "receiver",
    "sequence",
]
