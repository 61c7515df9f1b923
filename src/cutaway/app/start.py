"""`cutaway serve` and the end of `cutaway index`: what was asked for on the command line, checked and started."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.errors import CutawayError, UsageError

if TYPE_CHECKING:
    from cutaway.model import Model


def start(
    model: "str | Model | None",
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
    """Load ``model``, where it is a name, and answer at ``host:port`` until interrupted."""
    need_web()
    from cutaway.app.create import serve
    from cutaway.app.guard import access
    from cutaway.app.registry import read_registry

    secret = _token(token_file)
    access(host, secret)  # before the model is loaded, not after it
    if index is not None and not index.is_dir():
        raise UsageError(f"--index {index}: no such folder")
    if model is None and (vectors or edits or monitors):
        raise UsageError("--vectors, --edits and --monitor need a --model")
    registry = read_registry(vectors, edits, monitors)
    if isinstance(model, str):
        from cutaway.model import load_model

        model = load_model(model, dtype=dtype)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}  (Ctrl-C ends it)", file=sys.stderr)  # noqa: T201  the command's own line
    serve(ledger=ledger, model=model, index=index, host=host, port=port, token=secret, registry=registry)


def need_web() -> None:
    """CutawayError where the web packages are not installed."""
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise CutawayError(f"the web app needs {' and '.join(missing)}: pip install 'cutaway[app]'")


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("CUTAWAY_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {file}: {error}") from None
