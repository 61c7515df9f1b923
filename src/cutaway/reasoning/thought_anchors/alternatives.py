"""What the model would have said instead of a sentence, grouped by meaning where an embedder is at hand."""

from collections import Counter
from collections.abc import Sequence

from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.view import Alternative

SAME = 0.8
"""Cosine at or above which two sentences count as the same; the card's threshold."""


def group_alternatives(
    sentences: Sequence[str], answers: Sequence[str], leave: float, embed: Embed | None, most: int = 5
) -> tuple[Alternative, ...]:
    """The ``most`` frequent groups. ``leave`` is the probability that a rollout leaves the trace's sentence.

    Without an embedder only identical wordings are grouped; with one, a wording joins the first more frequent
    wording whose embedding has cosine >= `SAME` with it.
    """
    if not sentences:
        return ()
    wordings = [text for text, _ in Counter(sentences).most_common()]
    leaders = {text: text for text in wordings}
    if embed is not None:
        vectors = embed(wordings)
        near_to = cosine(vectors, vectors)
        heads: list[int] = []
        for i, text in enumerate(wordings):
            near = next((h for h in heads if near_to[i, h] >= SAME), None)
            if near is None:
                heads.append(i)
            else:
                leaders[text] = wordings[near]
    groups: dict[str, list[str]] = {}
    for text, answer in zip(sentences, answers, strict=True):
        groups.setdefault(leaders[text], []).append(answer)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:most]
    return tuple(
        Alternative(
            text=text,
            count=len(found),
            share=leave * len(found) / len(sentences),
            answers={answer: k / len(found) for answer, k in Counter(found).most_common()},
        )
        for text, found in largest
    )
