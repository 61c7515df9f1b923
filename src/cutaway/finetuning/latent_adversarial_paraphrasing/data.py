"""Short requests with exact answers in eleven wordings each: sums, a table to look up in, words of a list.

The wordings of a request mean the same by construction. Six are for training, five are held out; the queries of test
and training differ too. A user's own file of phrasings is read by `worst.read_phrasings`.
"""

from collections.abc import Sequence

import numpy as np

from cutaway.errors import UsageError
from cutaway.finetuning.exact import Item
from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import Wordings
from cutaway.model import Model

TRAINING = 6
"""Wordings for training; the rest are held out."""
WORDINGS = {
    "sum": (
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
        "{a} + {b} = ?",
        "Give the sum of {a} and {b}.",
        "How much is {a} plus {b}?",
        "Suppose you have {a} and get {b} more. How many are there now?",
        "total of {a} , {b} pls",
        "I need the result when {b} is added onto {a}.",
        "Take {a}. Increase it by {b}. Say what comes out.",
        "{a} and {b} together make which number?",
    ),
    "look-up": (
        "Prices: {table}. What does {key} cost?",
        "Given the prices {table}, what is the price of {key}?",
        "{table}. Price of {key}?",
        "The list says {table}. How much is {key}?",
        "From {table}, read off {key}.",
        "Table: {table}. Look up {key}.",
        "If {table}, then someone who buys {key} pays what?",
        "{key}? ({table})",
        "need cost of {key} , list is {table}",
        "Here is what things cost: {table}. I would like {key}. What do I owe?",
        "Which number stands next to {key} in this: {table}?",
    ),
    "last word": (
        "What is the last word of: {words}?",
        "Give the last word of {words}.",
        "{words}. Last word?",
        "Name the final word in {words}.",
        "Which word comes last in {words}?",
        "Read {words} and say the last word.",
        "After which word does this end: {words}?",
        "{words} -> final one pls",
        "Somebody said {words}. With what word did they stop?",
        "The words {words} stand in a row. Tell me the one at the end.",
        "Nothing follows one of these words: {words}. Which?",
    ),
}
_THINGS = ["tea", "bread", "soap", "honey", "paper", "salt", "rice", "oil"]


def wordings(model: Model, *, train: int, test: int, seed: int = 0) -> Wordings:
    """Return queries of all tasks in turn; the test's stand in the held-out wordings, the original in front.

    ``augmented`` has the training queries in all eleven wordings' held-out part: as many rows.
    """
    if train < 1 or test < 1:
        raise UsageError(f"train={train}, test={test}: 1 or more")
    rng = np.random.default_rng(seed)
    rows = [_query(i, rng) for i in range(train)]
    held = [_query(i, rng) for i in range(test)]
    known = {prompt(task, 0, values) for task, values, _ in rows}
    held = [query for query in held if prompt(query[0], 0, query[1]) not in known]
    count = len(WORDINGS["sum"])
    late = range(TRAINING, count)
    return Wordings(
        train=tuple(item(model, query, int(rng.integers(TRAINING))) for query in rows),
        augmented=tuple(item(model, query, int(rng.integers(TRAINING, count))) for query in rows),
        test=tuple(tuple(item(model, query, which) for which in (0, *late)) for query in held),
    )


Query = tuple[str, dict[str, str], str]


def prompt(task: str, which: int, values: dict[str, str]) -> str:
    """Return a request in one wording."""
    return WORDINGS[task][which].format(**values)


def item(model: Model, query: Query, which: int) -> Item:
    """Return a request as a chat turn (plain text for a model without a chat template), with its answer."""
    task, values, answer = query
    text = prompt(task, which, values)
    chats = model.tokenizer.chat_template is not None
    ids = model.chat_ids(text) if chats else model.encode(text)
    return Item(tuple(ids), (*model.encode(answer), *sorted(model.eos_ids)[:1]))


def phrasings(model: Model, queries: int, seed: int = 0) -> list[list[Sequence[int]]]:
    """Return queries in their training wordings, as token ids: to measure how far wordings lie apart."""
    rng = np.random.default_rng((seed, 1))
    drawn = [_query(i, rng) for i in range(queries)]
    return [[item(model, query, which).ids for which in range(TRAINING)] for query in drawn]


def _query(number: int, rng: np.random.Generator) -> Query:
    task = list(WORDINGS)[number % len(WORDINGS)]
    if task == "sum":
        a, b = (int(x) for x in rng.integers(2, 30, 2))
        return task, {"a": str(a), "b": str(b)}, str(a + b)
    things = [_THINGS[int(i)] for i in rng.permutation(len(_THINGS))[:3]]
    if task == "look-up":
        prices = [str(int(x)) for x in rng.integers(2, 99, 3)]
        table = ", ".join(f"{thing} {price}" for thing, price in zip(things, prices, strict=True))
        place = int(rng.integers(3))
        return task, {"table": table, "key": things[place]}, prices[place]
    return task, {"words": " ".join(things)}, things[-1]
