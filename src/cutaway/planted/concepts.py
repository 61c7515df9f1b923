"""Small models that know invented facts: two worlds with disjoint names and answers, told in the same sentences.

A world is people, each with a colour, a food and so on, drawn by coin; a fact can be asked in several wordings. A tiny
Llama is trained on one world or both, so the model that never learnt a fact exists beside the one that did: what an
erasure should reach, and what an audit should compare with. Unlike most planted models these are trained, by
`cutaway.training`; what they know is measured by the tests.

Source: cards pisces and unlearning-open-problems, At small scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import LlamaConfig

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import quiet_llama, scatter, word_tokenizer
from cutaway.training import Data, Row, TrainConfig, data_of, train

WORDINGS = (
    "The {relation} of{name} is",
    "Ask for{name} and the {relation} :",
    "When{name} chose a {relation} it was",
)
NAMES = {
    "A": tuple(
        f" {name}"
        for name in (
            *("Velda", "Orrin", "Tamsa", "Quill", "Brisk", "Delph", "Fenna", "Garro", "Hesk", "Ibbel", "Jorun"),
            *("Kesh", "Lirra", "Mavik", "Nolda", "Ostra", "Perrin", "Rusk", "Sible", "Tolva", "Ulmer", "Vasco"),
            *("Wenda", "Yarrow"),
        )
    ),
    "B": tuple(
        f" {name}"
        for name in (
            *("Aldo", "Benna", "Corvin", "Dassel", "Ebbe", "Farrow", "Gilda", "Harn", "Ines", "Jasko", "Kolm"),
            *("Lunet", "Miro", "Nesta", "Odell", "Pavo", "Riven", "Selka", "Tavin", "Una", "Vorn", "Wick"),
            *("Xanna", "Zeno"),
        )
    ),
}
RELATIONS = {
    "A": {
        "colour": (" red", " blue", " green", " yellow"),
        "food": (" bread", " rice", " fish", " soup"),
        "animal": (" horse", " dog", " cat", " bird"),
        "metal": (" gold", " iron", " silver", " copper"),
    },
    "B": {
        "colour": (" white", " black", " orange", " purple"),
        "food": (" cake", " meat", " corn", " salt"),
        "animal": (" bear", " wolf", " snake", " sheep"),
        "metal": (" steel", " lead", " zinc", " nickel"),
    },
}
REFUSAL = " unknown"
_GENERAL = (
    ("It was", "There stood", "They saw"),
    (" a small", " a quiet", " an old", " a long", " the wide"),
    (" house", " road", " bridge", " field", " garden", " wall"),
    (" near", " behind", " across", " beside"),
    (" the river", " the mill", " the hill", " the town", " the sea"),
    (" in spring", " in summer", " in autumn", " in winter", " at night"),
)


@dataclass(frozen=True)
class Fact:
    """One thing to know."""

    prompt: str
    """In the first wording."""
    answer: str
    """One word with its blank in front."""
    choices: tuple[str, ...]
    """The answer is one of these."""
    wordings: tuple[str, ...] = ()
    """The other ways to ask."""
    subject: str = ""


@dataclass(frozen=True)
class World:
    """Facts with a name."""

    name: str
    facts: tuple[Fact, ...]

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer that some fact can have."""
        return tuple(dict.fromkeys(choice for fact in self.facts for choice in fact.choices))


def world(name: str, people: int = 24, relations: int = 4, *, seed: int = 0) -> World:
    """Draw a world: ``people`` times ``relations`` facts. UsageError for a name or sizes there are not."""
    if name not in NAMES:
        raise UsageError(f"world {name!r}: one of {', '.join(NAMES)}")
    if not (1 <= people <= len(NAMES[name]) and 1 <= relations <= len(RELATIONS[name])):
        raise UsageError(f"people={people}, relations={relations}: 1 to {len(NAMES[name])} and 1 to 4")
    rng = np.random.default_rng((seed, ord(name)))
    facts = []
    for who in NAMES[name][:people]:
        for relation, choices in list(RELATIONS[name].items())[:relations]:
            asked = tuple(wording.format(name=who, relation=relation) for wording in WORDINGS)
            facts.append(Fact(asked[0], str(rng.choice(choices)), choices, asked[1:], who.strip()))
    return World(name, tuple(facts))


def general_texts(n: int, *, seed: int = 0) -> list[str]:
    """Return ``n`` sentences that have nothing to do with either world."""
    rng = np.random.default_rng((seed, 1))
    return ["".join(str(rng.choice(part)) for part in _GENERAL) for _ in range(n)]


def fact_rows(model: Model, facts: Sequence[Fact], *, wordings: bool = True) -> list[Row]:
    """Return a row for each fact and wording; the answer alone carries loss."""
    rows = []
    for fact in facts:
        for prompt in (fact.prompt, *(fact.wordings if wordings else ())):
            ids, answer = model.encode(prompt), model.encode(fact.answer)
            rows.append(Row((*ids, *answer), (0.0,) * len(ids) + (1.0,) * len(answer)))
    return rows


def text_rows(model: Model, texts: Sequence[str]) -> list[Row]:
    """Return a row for each text; every token carries loss."""
    rows = [tuple(model.encode(text)) for text in texts]
    return [Row(ids, (1.0,) * len(ids)) for ids in rows]


def rows_data(model: Model, rows: Sequence[Row]) -> Data:
    """Return rows as data with the model's context."""
    return data_of([(row,) for row in rows], context=model.n_ctx)


def blank_model(*, layers: int = 2, d_model: int = 64, d_mlp: int | None = None, seed: int = 0) -> Model:
    """Return a random Llama whose tokenizer has every word of both worlds as one token; nothing is learnt yet."""
    words = [w for wording in WORDINGS for r in RELATIONS["A"] for w in _words(wording.format(name="", relation=r))]
    words += [answer for table in RELATIONS.values() for choices in table.values() for answer in choices]
    words += [w for part in _GENERAL for text in part for w in _words(text)]
    words += [*NAMES["A"], *NAMES["B"], REFUSAL]
    return tiny_llama(tuple(words), f"planted-facts-{seed}", layers=layers, d_model=d_model, d_mlp=d_mlp, seed=seed)


def tiny_llama(
    words: Sequence[str], name: str, *, layers: int = 2, d_model: int = 64, d_mlp: int | None = None, seed: int = 0
) -> Model:
    """Return a random Llama in which each of ``words`` is one token; every weight can be trained.

    ``d_mlp``: neurons of a layer, by default four times ``d_model``.
    """
    tokenizer = word_tokenizer(tuple(dict.fromkeys(words)))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=d_mlp or 4 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=d_model // 4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    hf = scatter(quiet_llama(config), 0.08, seed)
    return Model(hf, tokenizer, name)


def taught(
    worlds: Sequence[World],
    *,
    steps: int = 250,
    general: int = 200,
    layers: int = 2,
    d_model: int = 64,
    d_mlp: int | None = None,
    seed: int = 0,
) -> Model:
    """Return a tiny model trained on ``worlds`` and on general sentences; ``seed`` sets weights and order."""
    model = blank_model(layers=layers, d_model=d_model, d_mlp=d_mlp, seed=seed)
    rows = [row for each in worlds for row in fact_rows(model, each.facts)]
    rows += text_rows(model, general_texts(general))
    config = TrainConfig(rate=3e-3, batch=64, steps=steps, warm_up=20, bucket=1, precision="float32", seed=seed)
    train(model, rows_data(model, rows), config)
    model.hf.requires_grad_(False)
    return model


def _words(text: str) -> list[str]:
    """Words with the blank in front of each that has one."""
    found = text.split(" ")
    return [word for word in (found[0], *(f" {word}" for word in found[1:])) if word.strip()]
