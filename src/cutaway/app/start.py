"""`cutaway serve`: what was asked for on the command line, checked and started."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cutaway.errors import CutawayError, UsageError


def start(
    model: str | None,
    *,
    index: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    dtype: str = "auto",
    ledger: str | None = None,
    vectors: Sequence[str] = (),
    edits: Sequence[str] = (),
    monitors: Sequence[str] = (),
) -> None:
    """Load ``model`` and answer at ``host:port`` until interrupted."""
    try:
        from cutaway.app.create import serve
        from cutaway.app.guard import access
        from cutaway.app.registry import read_registry
    except ImportError:
        raise CutawayError("`cutaway serve` needs the web packages: pip install 'cutaway[app]'") from None
    secret = _token(token_file)
    access(host, secret)  # before the model is loaded, not after it
    if index is not None and not index.is_dir():
        raise UsageError(f"--index {index}: no such folder")
    opened = None
    if model is None and (vectors or edits or monitors):
        raise UsageError("--vectors, --edits and --monitor need a --model")
    registry = read_registry(vectors, edits, monitors)
    if model is not None:
        from cutaway.model import load_model

        opened = load_model(model, dtype=dtype)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}  (Ctrl-C ends it)", file=sys.stderr)  # noqa: T201  the command's own line
    serve(ledger=ledger, model=opened, index=index, host=host, port=port, token=secret, registry=registry)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("CUTAWAY_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {file}: {error}") from None
