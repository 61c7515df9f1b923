"""Errors a user meets: one line that names what was given, what is allowed and what to do."""

import difflib
from collections.abc import Iterable


class CutawayError(Exception):
    """Something went wrong while working; the command line prints the message and exits 1."""

    exit_code = 1


class UsageError(CutawayError, ValueError):
    """The request itself cannot be served as written; the command line exits 2."""

    exit_code = 2


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or the allowed names when none is close.

    >>> nearest("resid_pots", ["resid_post", "attn_out"])
    "; did you mean 'resid_post'?"
    """
    options = sorted(set(allowed))
    close = difflib.get_close_matches(given, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"; choose one of: {shown}" if shown else ""
