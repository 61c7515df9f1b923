"""A run as a plain dictionary to hand to others: nothing in it tells where or by whom it was made."""

import getpass
import os
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cutaway.ledger.ledger import Ledger
from cutaway.ledger.records import RunRecord

REMOVED = "<removed>"

_END = r"[^\s/\\'\"<>|,;()\[\]{}]"
_FILE_URL = re.compile(r"\b(?:file|sqlite|sqlite\+\w+):/+")
_UNIX_PATH = re.compile(rf"(?<![\w/.])~?(?:/{_END}+)+/({_END}+)/?|(?<!\w)~/({_END}+)/?")
_WINDOWS_PATH = re.compile(rf"(?<!\w)(?:[A-Za-z]:|\\)[\\/](?:{_END}+[\\/])*({_END}*)[\\/]?")
_WHOLE_PATH = re.compile(r"(?:/|~|[A-Za-z]:[\\/]|\\\\)[^\n]*")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gho|ghs|github_pat|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b"
    r"|(?<=Bearer )\S+"
)
_SECRET_NAME = re.compile(r"(?:^|_)(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_COMMON_USERS = {"root"}  # says nothing about a person, and stands in many a prompt ("square root")


def export(ledger: Ledger, run: str) -> dict[str, Any]:
    """A run (id or prefix), its findings, files' names and hashes, and rechecks, without anything private.

    Absolute paths shrink to their last component (a local model to ``name@<8 digits of its weights' hash>``);
    the home directory, user and host name, credentials in URLs, keys and tokens are removed. The content of
    files is not exported.
    """
    record = ledger.run(run)
    told = {
        "run": {**record.to_dict(), "config": _config(record)},
        "findings": [item.to_dict() for item in ledger.findings(record.id)],
        "artifacts": [each.to_dict() for each in ledger.artifacts(record.id)],
        "replications": [each.to_dict() for each in ledger.replications(record.id)],
    }
    return scrub(told)


def scrub(value: Any) -> Any:
    """A copy of JSON-like ``value`` with every string, keys included, free of paths, names and secrets."""
    return _walk(value, _cleaner())


def _config(record: RunRecord) -> dict[str, Any]:
    config = {
        key: REMOVED if _SECRET_NAME.search(key) and isinstance(value, str) else value
        for key, value in record.config.items()
    }
    model = config.get("model")
    if isinstance(model, str) and _WHOLE_PATH.fullmatch(model):
        config["model"] = _local_model(model, record.inputs)
    return config


def _local_model(spec: str, inputs: Mapping[str, str]) -> str:
    name = _last(spec)
    hashes = [sha for key, sha in inputs.items() if key.startswith("weights:")]
    sha = inputs.get(f"weights:{name}") or (hashes[0] if len(hashes) == 1 else "")
    return f"{name}@{sha[:8]}" if sha else name


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].lstrip("~")


def _walk(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): _walk(each, clean) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(each, clean) for each in value]
    return value


def _cleaner() -> Callable[[str], str]:
    home = str(Path.home())
    secrets = {text for name, text in os.environ.items() if _SECRET_NAME.search(name) and len(text) >= 8}
    words = [re.escape(name) for name in sorted(_names(), key=len, reverse=True)]
    named = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(words)})(?![A-Za-z0-9])") if words else None

    def clean(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, REMOVED)
        text = _SECRET.sub(REMOVED, _USER_IN_URL.sub("", text))
        text = _FILE_URL.sub("/", text).replace(home + os.sep, "~/").replace(home, "~")
        if _WHOLE_PATH.fullmatch(text) and re.search(r"[\\/]\S*[\\/]|^~|^\w:|^\\", text):
            text = _last(text)
        text = _WINDOWS_PATH.sub(r"\1", text)
        text = _UNIX_PATH.sub(lambda match: match[1] or match[2], text)
        return named.sub(REMOVED, text) if named else text

    return clean


def _names() -> set[str]:
    """What this user and this machine are called."""
    names = {os.environ.get(key, "") for key in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    names |= {Path.home().name, socket.gethostname()}
    with suppress(KeyError, OSError):  # a user id without an account has no name to hide
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2} - _COMMON_USERS
