"""What a probe has to beat: scores that need no activations. Each is fitted on some texts and scores others."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

_WORD = re.compile(r"[a-z0-9]+")


def length_scores(
    train: Sequence[str], labels: Bool[np.ndarray, " text"], test: Sequence[str]
) -> Float[np.ndarray, " row"]:
    """Scores of a logistic regression on the number of words and of characters."""
    from sklearn.linear_model import LogisticRegression

    def features(texts: Sequence[str]) -> np.ndarray:
        return np.log1p(np.array([[len(text.split()), len(text)] for text in texts], dtype=float))

    x = features(train)
    centre, scale = x.mean(0), x.std(0) + 1e-9
    fit = LogisticRegression().fit((x - centre) / scale, labels)
    return np.asarray(fit.decision_function((features(test) - centre) / scale))


def word_scores(
    train: Sequence[str], labels: Bool[np.ndarray, " text"], test: Sequence[str]
) -> Float[np.ndarray, " row"]:
    """Scores of a logistic regression on which words a text has."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    fit = LogisticRegression(max_iter=2000).fit(words.fit_transform(train), labels)
    return np.asarray(fit.decision_function(words.transform(test)))


def overlap(question: str, context: str) -> float:
    """Share of the question's content words that stand in the context; 0 for a question without any."""
    asked = content_words(question)
    return len(asked & content_words(context)) / len(asked) if asked else 0.0


def content_words(text: str) -> set[str]:
    """The different words of ``text``, lower case, without those that only join others."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return set(_WORD.findall(text.lower())) - ENGLISH_STOP_WORDS
