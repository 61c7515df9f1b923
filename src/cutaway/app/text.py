"""Token ids to the text a client sees, piece by piece: no half characters, no stop strings, no special tokens."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cutaway.model import Model

HALF = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one choice as its tokens arrive; all pieces joined are the text of the whole.

    ``stop``: the text ends before the first of these, or behind it with ``keep_stop``.
    """

    def __init__(
        self, model: "Model", stop: Sequence[str] = (), *, keep_special: bool = False, keep_stop: bool = False
    ) -> None:
        self._model, self._stop, self._keep_stop = model, tuple(stop), keep_stop
        self._hidden = frozenset() if keep_special else model.special_ids
        self._ids: list[int] = []
        self._start = 0
        """Where the tokens begin that give the newest ones their context."""
        self._read = 0
        """Where the tokens begin whose text is not known yet."""
        self._held = ""
        """Text that may turn out to begin a stop string."""
        self.stopped = False

    def add(self, ids: Sequence[int], last: bool = False) -> str:
        """Return the text that ``ids`` make certain; with ``last`` all that is left."""
        if self.stopped:
            return ""
        self._ids += [token for token in ids if token not in self._hidden]
        # Some tokenizers decode a token by its neighbours, so the newest are decoded behind those before them.
        before = self._model.decode(self._ids[self._start : self._read])
        whole = self._model.decode(self._ids[self._start :])
        if len(whole) > len(before) and (last or not whole.endswith(HALF)):
            self._held += whole[len(before) :]
            self._start, self._read = self._read, len(self._ids)
        return self._release(last)

    def _release(self, last: bool) -> str:
        found = [(self._held.find(mark), mark) for mark in self._stop if mark in self._held]
        if found:
            at, mark = min(found)
            self.stopped = True
            return self._held[: at + len(mark) if self._keep_stop else at]
        keep = 0 if last else max((_overlap(self._held, mark) for mark in self._stop), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters of ``text`` are the first of ``mark``.

    >>> _overlap("how it went: St", "Stop")
    2
    """
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


@lru_cache(maxsize=65536)
def token_text(model: "Model", token: int) -> str:
    """One token's own text; a part of a character shows as the replacement character."""
    return model.decode([token])
