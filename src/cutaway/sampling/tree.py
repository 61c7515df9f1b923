"""The branch tree: an append-only store of rollouts on disk, keyed by content.

A folder holds the rollouts of one model under one list of edits: `tree.json` names both, `rollouts.jsonl`
grows. A rollout's key is its prefix ids, settings, banned first token and seed, so asking again for what was
sampled once costs nothing, and a run that was killed goes on where it stopped.

File format, one JSON object a line, each ending in a CRC-32 of what stands before it:

- ``{"prefix": id, "parent": id or null, "ids": [...]}``: a prefix is stored once, as what it adds to the
  longest stored prefix that it begins with;
- ``{"request": id, "prefix": id, "length": n, "settings": {...}, "ban_first": token or null}``;
- ``{"request": id, "seed": s, "ids": [...], "logprobs": [...], "finish": "stop" or "length"}``.

What holds:

1. Writers append whole lines under a file lock, after reading what others appended: any number of processes
   may sample into one tree, and a rollout that two of them drew is kept once (the first).
2. A line without its end was cut by a kill or a full disk; whoever holds the lock next takes it away.
3. A line whose checksum does not match (a bad disk, an editor) is skipped, counted in `BranchTree.damaged`
   and warned of. It is not an error: every record can be drawn again from its key, and one flipped bit should
   cost one rollout, not the tree. Rollouts whose prefix record is lost are still found by key.

Limits: log-probs are kept to 1e-4; an unknown one (NaN) is kept as null. Lines survive the death of the
process, not a power cut in the same seconds (nothing waits for the disk before `close`). Needs `fcntl`
(Linux, macOS).
"""

import array
import contextlib
import fcntl
import hashlib
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import CutawayError, UsageError
from cutaway.sampling.types import Cost, Engine, Request, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.model import Edit

_FORMAT = 1
_SEAL = b',"crc":"%08x"}\n'
_SEAL_LENGTH = len(_SEAL % 0)


class BranchTree:
    """One folder of rollouts; open it with `BranchTree.open`, use it as a context manager."""

    def __init__(self, folder: Path, fd: int, identity: str, edits: tuple[str, ...]) -> None:
        self.folder = folder
        self.identity = identity
        self.edits = edits
        """Digests of the edits under which these rollouts were drawn, in order."""
        self.cost = Cost()
        """``reused``: tokens of rollouts that `sample` served from here instead of drawing them."""
        self.damaged = 0
        """Lines that were skipped because they do not match their checksum."""
        self._fd = fd
        self._end = 0  # everything before this byte is indexed
        self._where: dict[str, dict[int, tuple[int, int]]] = {}  # request id -> seed -> (offset, length)
        # Request id -> (prefix id, settings, ban_first); prefix id -> (parent id, added ids).
        self._requests: dict[str, tuple[str, Settings, int | None]] = {}
        self._prefixes: dict[str, tuple[str | None, tuple[int, ...]]] = {}

    @classmethod
    def open(cls, folder: str | Path, identity: str, edits: "Sequence[Edit]" = ()) -> "BranchTree":
        """Open the tree in ``folder``, or start one, for the engine ``identity`` under ``edits``.

        Raises `UsageError` when the folder holds another model's or other edits' rollouts.
        """
        folder = Path(folder)
        digests = tuple(edit.digest for edit in edits)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder / "rollouts.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise CutawayError(f"cannot open the branch tree in {folder}: {error.strerror}") from error
        tree = cls(folder, fd, identity, digests)
        try:
            with tree._locked():
                tree._check_header()
                tree._catch_up()
        except BaseException:
            os.close(fd)
            raise
        if tree.damaged:
            warnings.warn(
                f"{folder / 'rollouts.jsonl'}: {tree.damaged} damaged line(s) skipped, to be drawn again",
                stacklevel=2,
            )
        return tree

    def __enter__(self) -> "BranchTree":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Rollouts known to this process; another one's newest are counted once they were looked for."""
        return sum(len(seeds) for seeds in self._where.values())

    def __repr__(self) -> str:
        return f"BranchTree({str(self.folder)!r}, {len(self)} rollouts of {self.identity})"

    def get(self, request: Request, seed: int) -> Rollout | None:
        """The stored rollout of ``request`` for ``seed``, another process's included."""
        return self._get(_request_id(request), seed)

    def add(self, request: Request, rollout: Rollout) -> Rollout:
        """Append ``rollout`` unless its key is stored already; return what the tree holds from now on.

        Raises `CutawayError` when it cannot be written (a full disk); the file is left as it was.
        """
        return self._add(_request_id(request), request, rollout)

    def rollouts(self) -> Iterator[tuple[Request, Rollout]]:
        """Every stored rollout with the request for its one seed; request by request, oldest first."""
        self._refresh()
        for rid, seeds in list(self._where.items()):
            if rid not in self._requests:
                continue  # its prefix record is damaged: without the ids there is no request to give
            prefix_id, settings, ban_first = self._requests[rid]
            prefix = self._prefix_ids(prefix_id)
            for seed, place in list(seeds.items()):
                yield Request(prefix, (seed,), settings, ban_first), self._read(*place)

    def close(self) -> None:
        """Write everything through to the disk and let go of the file."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise self._disk_error(error) from error
            finally:
                os.close(self._fd)
                self._fd = -1

    def _get(self, rid: str, seed: int) -> Rollout | None:
        if seed not in self._where.get(rid, {}):
            self._refresh()
        place = self._where.get(rid, {}).get(seed)
        return None if place is None else self._read(*place)

    def _add(self, rid: str, request: Request, rollout: Rollout) -> Rollout:
        rollout = replace(rollout, logprobs=tuple(_rounded(x) for x in rollout.logprobs))
        line = _seal(_rollout_record(rid, rollout))
        with self._locked():
            self._catch_up()
            if rollout.seed not in self._where.get(rid, {}):
                self._append([*self._new_context(request, rid), line])
                return rollout
        return self._read(*self._where[rid][rollout.seed])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._fd < 0:
            raise UsageError(f"the branch tree in {self.folder} was closed; open it again")
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _refresh(self) -> None:
        if self._fd < 0 or os.fstat(self._fd).st_size != self._end:
            with self._locked():
                self._catch_up()

    def _check_header(self) -> None:
        path = self.folder / "tree.json"
        ours = {"format": _FORMAT, "identity": self.identity, "edits": list(self.edits)}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if os.fstat(self._fd).st_size:
                raise CutawayError(
                    f"{self.folder} has rollouts but no tree.json to say whose; choose another folder"
                ) from None
            self._write_header(path, ours)
            return
        except (OSError, ValueError) as error:
            raise CutawayError(f"{path} cannot be read ({error}); choose another folder") from error
        for field, wanted in ours.items():
            held = found.get(field) if isinstance(found, dict) else None
            if held != wanted:
                raise UsageError(
                    f"{self.folder} holds rollouts of {field} {held!r}, not {wanted!r}; choose another folder"
                )

    def _write_header(self, path: Path, header: dict[str, Any]) -> None:
        fresh = path.with_suffix(".json.new")
        try:
            fresh.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
            fresh.replace(path)  # whole or not at all
        except OSError as error:
            raise self._disk_error(error) from error

    def _catch_up(self) -> None:
        """Index what was appended since the last look; the caller holds the lock."""
        size = os.fstat(self._fd).st_size
        if size == self._end:
            return
        if size < self._end:
            raise CutawayError(f"{self.folder / 'rollouts.jsonl'} was cut by another program; open it again")
        with open(self._fd, "rb", closefd=False) as lines:
            lines.seek(self._end)
            for line in lines:
                if not line.endswith(b"\n"):
                    # Every writer holds the lock while it writes, so this one died.
                    os.ftruncate(self._fd, self._end)
                    return
                self._index(line)

    def _index(self, line: bytes) -> None:
        """Take in the line at ``self._end``; doing it twice (after an interrupt) changes nothing."""
        record = _unseal(line)
        if record is None:
            self.damaged += 1
        elif "seed" in record:
            place = (self._end, len(line))
            self._where.setdefault(record["request"], {}).setdefault(record["seed"], place)
        elif "settings" in record:
            settings = Settings(**{**record["settings"], "stop": tuple(record["settings"]["stop"])})
            if record["prefix"] in self._prefixes:
                self._requests[record["request"]] = (record["prefix"], settings, record["ban_first"])
        elif record["parent"] is None or record["parent"] in self._prefixes:
            self._prefixes[record["prefix"]] = (record["parent"], tuple(record["ids"]))
        self._end += len(line)

    def _append(self, lines: Sequence[bytes]) -> None:
        """Write whole lines or nothing; the caller holds the lock and has caught up."""
        data = memoryview(b"".join(lines))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            raise self._disk_error(error) from error
        for line in lines:
            self._index(line)

    def _disk_error(self, error: OSError) -> CutawayError:
        return CutawayError(
            f"cannot write to the branch tree in {self.folder}: {error.strerror}; what was stored before is "
            "intact: make room and run again"
        )

    def _new_context(self, request: Request, rid: str) -> list[bytes]:
        """The lines that make ``request`` readable from the file alone, where they are not there yet."""
        if rid in self._requests:
            return []
        lines = []
        prefix_id = _prefix_id(request.prefix)
        if prefix_id not in self._prefixes:
            path = _prefix_path(request.prefix)
            shared = next((n for n in range(len(path) - 1, 0, -1) if path[n - 1] in self._prefixes), 0)
            parent = path[shared - 1] if shared else None
            lines.append(_seal({"prefix": prefix_id, "parent": parent, "ids": request.prefix[shared:]}))
        settings, length = _plain(request.settings), len(request.prefix)
        context = {"request": rid, "prefix": prefix_id, "length": length, "settings": settings}
        return [*lines, _seal({**context, "ban_first": request.ban_first})]

    def _prefix_ids(self, prefix_id: str) -> tuple[int, ...]:
        parts = []
        at: str | None = prefix_id
        while at is not None:
            at, added = self._prefixes[at]
            parts.append(added)
        return tuple(token for part in reversed(parts) for token in part)

    def _read(self, offset: int, length: int) -> Rollout:
        record = _unseal(os.pread(self._fd, length, offset))
        if record is None:
            raise CutawayError(f"{self.folder / 'rollouts.jsonl'} was changed at byte {offset}; open it again")
        logprobs = tuple(math.nan if x is None else x for x in record["logprobs"])
        return Rollout(record["seed"], tuple(record["ids"]), logprobs, record["finish"])


def sample(
    tree: BranchTree, engine: Engine, requests: Sequence[Request], edits: "Sequence[Edit]" = ()
) -> Iterator[tuple[int, Rollout]]:
    """Yield ``(index of the request, rollout)``: stored ones first, then the missing as they are drawn.

    Each new rollout is in the tree before it is yielded: whatever ends the loop, the next call goes on from
    there. A seed or a request given twice is drawn once. Raises `UsageError` for another engine's tree.
    """
    if engine.identity != tree.identity:
        raise UsageError(f"the tree in {tree.folder} holds {tree.identity}, the engine is {engine.identity}")
    if (given := tuple(edit.digest for edit in edits)) != tree.edits:
        raise UsageError(f"the tree in {tree.folder} holds rollouts under edits {tree.edits}, not {given}")
    return _sample(tree, engine, requests, edits)


def _sample(
    tree: BranchTree, engine: Engine, requests: Sequence[Request], edits: "Sequence[Edit]"
) -> Iterator[tuple[int, Rollout]]:
    missing: dict[Request, dict[int, list[int]]] = {}  # request without seeds -> seed -> who asks for it
    for index, request in enumerate(requests):
        rid, wanted = _request_id(request), missing.setdefault(replace(request, seeds=()), {})
        for seed in request.seeds:
            stored = tree._get(rid, seed)
            if stored is None:
                wanted.setdefault(seed, []).append(index)
            else:
                tree.cost += Cost(reused=len(stored.ids))
                yield index, stored
    todo = [replace(request, seeds=tuple(seeds)) for request, seeds in missing.items() if seeds]
    keys = [_request_id(request) for request in todo]
    owners = [seeds for seeds in missing.values() if seeds]
    for at, drawn in engine.stream(todo, edits) if todo else ():
        kept = tree._add(keys[at], todo[at], drawn)
        for index in owners[at][kept.seed]:
            yield index, kept


def _seal(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":"))[:-1].encode()
    return body + _SEAL % zlib.crc32(body)


def _unseal(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None when it is not what was written."""
    if line[-_SEAL_LENGTH:] != _SEAL % zlib.crc32(line[:-_SEAL_LENGTH]):
        return None
    return json.loads(line)


def _rollout_record(rid: str, rollout: Rollout) -> dict[str, Any]:
    return {
        "request": rid,
        "seed": rollout.seed,
        "ids": rollout.ids,
        "logprobs": [None if math.isnan(x) else x for x in rollout.logprobs],
        "finish": rollout.finish,
    }


def _rounded(logprob: float) -> float:
    # One NaN object: tuples compare it equal to itself, so a rollout equals its copy from the file.
    return round(logprob, 4) if math.isfinite(logprob) else math.nan


def _plain(settings: Settings) -> dict[str, Any]:
    # 1 and 1.0 are the same setting and must give the same key.
    floats = {"temperature": float(settings.temperature), "top_p": float(settings.top_p)}
    return {**vars(settings), **floats}


def _prefix_path(prefix: Sequence[int]) -> list[str]:
    """Ids (of content) of every leading part of ``prefix``, the whole one last."""
    digest, path = hashlib.sha256(), []
    for token in prefix:
        digest.update(array.array("q", (token,)).tobytes())
        path.append(digest.hexdigest()[:32])
    return path


def _prefix_id(prefix: Sequence[int]) -> str:
    return hashlib.sha256(array.array("q", prefix).tobytes()).hexdigest()[:32]


def _request_id(request: Request) -> str:
    what = {
        "prefix": _prefix_id(request.prefix),
        "settings": _plain(request.settings),
        "ban_first": request.ban_first,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
