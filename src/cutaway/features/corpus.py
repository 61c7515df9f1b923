"""Text to read activations from: files and data set folders of every usual kind, as a stream of documents.

wikitext, shakespeare   the two small corpora in ``data/corpus`` of a source checkout
FILE.txt                documents of about 8,000 characters, cut at blank lines (neighbours come from one text)
FILE.jsonl, .jsonl.gz   one document a line, in ``field``
FILE.parquet, .arrow    one document a row, in column ``field``
FOLDER                  a Hugging Face data set: what `save_to_disk` wrote or what was cloned from the hub
OWNER/NAME              a data set of the Hugging Face hub: its files of these kinds are downloaded once, and code in
                        it is never run; of the split alone where one is named
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError, UsageError, nearest

_DATA = Path(__file__).parents[3] / "data" / "corpus"
_SMALL = {"wikitext": "wikitext2_valid.txt", "shakespeare": "tinyshakespeare.txt"}
_TITLE = re.compile(r" = [^=].*[^=] = \n?")
_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".txt")
_SPLITS = ("train", "validation", "valid", "test")
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CHARACTERS = 8000


@dataclass(frozen=True)
class Corpus:
    """Documents, read as they are asked for; iterating twice reads twice."""

    name: str
    files: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    """In place of files."""
    field: str = "text"
    limit: int | None = None
    """Documents at most."""

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.files)} files)" if self.files else f"Corpus({len(self.texts)} texts)"

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self._all()):
            if number == self.limit:
                return
            yield text

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text: of the files' bytes, or of the texts; of the field and the limit, too."""
        total = hashlib.sha256(json.dumps([self.field, self.limit]).encode())
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            total.update(len(encoded).to_bytes(8, "big") + encoded)
        return total.hexdigest()

    def parts(self) -> "tuple[Corpus, Corpus]":
        """Return three quarters of the documents, to learn from, and the rest, to measure on.

        UsageError for fewer than four documents.
        """
        texts = tuple(self)
        if len(texts) < 4:
            raise UsageError(
                f"corpus {self.name!r} has {len(texts)} documents; 4 or more keep learning and measuring apart"
            )
        cut = min(max(2, len(texts) * 3 // 4), len(texts) - 2)
        return Corpus(f"{self.name}, first part", texts=texts[:cut]), Corpus(f"{self.name}, rest", texts=texts[cut:])

    def _all(self) -> Iterator[str]:
        yield from self.texts
        for path in self.files:
            for text in _read(path, self.field):
                if text.strip():
                    yield text


def open_corpus(
    source: str | Path | Sequence[str], *, field: str = "text", split: str = "", limit: int | None = None
) -> Corpus:
    """Return the corpus that ``source`` names: one of the small ones, a file, a folder, or a list of texts.

    ``split`` picks one of a data set's splits, and is needed where it has several.

    Raises UsageError for a source, kind of file or split that does not exist; a missing ``field`` is found on reading.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit}: 1 or more documents")
    if not isinstance(source, str | Path):
        texts = tuple(source)
        if not any(text.strip() for text in texts):
            raise UsageError("texts: none has any text in it")
        return Corpus("texts", texts=texts, limit=limit)
    if str(source) in _SMALL:
        path = _DATA / _SMALL[str(source)]
        if not path.exists():
            raise CutawayError(f"no {path.name} in {path.parent}; corpus {source!r} needs a source checkout")
        return Corpus(str(source), (path,), limit=limit)
    path = Path(source)
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise UsageError(f"{path.name}: a corpus is one of {', '.join(_SUFFIXES)}")
        return Corpus(path.name, (path,), field=field, limit=limit)
    if path.is_dir():
        return Corpus(path.name, _files(path, split), field=field, limit=limit)
    if not _HUB.fullmatch(str(source)):
        raise UsageError(f"corpus {str(source)!r} is no file or folder{nearest(str(source), _SMALL)}")
    return Corpus(str(source), _files(_download(str(source), split), split), field=field, limit=limit)


def _download(name: str, split: str) -> Path:
    """Return the folder of the hub's cache that holds a data set's text."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{split}*{suffix}" for suffix in _SUFFIXES]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (OSError, ValueError) as error:  # what the hub says comes as either
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"corpus {name!r} is no file or folder, and the Hugging Face hub gave no such data set: {line}"
        ) from error


def _files(folder: Path, split: str) -> tuple[Path, ...]:
    """Return a data set's files of one kind and one split, in order."""
    for suffix in _SUFFIXES:
        found = [path for path in sorted(folder.rglob(f"*{suffix}")) if not path.name.startswith((".", "cache-"))]
        if not found:
            continue
        splits = {_split(path, folder) for path in found} - {""}
        if split:
            if split not in splits:
                raise UsageError(f"split={split!r}: {folder.name} has no such split{nearest(split, splits)}")
            return tuple(path for path in found if _split(path, folder) == split)
        if len(splits) > 1:
            raise UsageError(f"{folder.name} has splits {', '.join(sorted(splits))}; name one with split=")
        return tuple(found)
    raise UsageError(f"{folder} holds no text: expected files that end in {', '.join(_SUFFIXES)}")


def _split(path: Path, folder: Path) -> str:
    """Return the split a file belongs to, by its folder's name or its own; empty where neither says."""
    inside = path.relative_to(folder)
    parts = [*inside.parts[:-1], re.split(r"[-_.]", inside.name)[0]]
    return next((part for part in parts if part in _SPLITS), "")


def _read(path: Path, field: str) -> Iterator[str]:
    if path.name.endswith(".txt"):
        with path.open(encoding="utf-8") as file:
            yield from _articles(file) if path.name.startswith("wikitext") else _pieces(file)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from _lines(file, path, field)
    else:
        yield from _columns(path, field)


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """Split WikiText at the titles of its articles."""
    held: list[str] = []
    for line in lines:
        if _TITLE.fullmatch(line) and any(part.strip() for part in held):
            yield "".join(held)
            held = []
        held.append(line)
    yield "".join(held)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _CHARACTERS and not line.strip():
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _lines(file: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise CutawayError(f"{path.name}, line {number}: not JSON ({error})") from error
        names = row if isinstance(row, dict) else ()
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UsageError(f"{path.name}, line {number}: no text in field {field!r}{nearest(field, names)}")
        yield row[field]


def _columns(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            parquet = pq.ParquetFile(path)
            _has(path, field, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(256, columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
            return
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            _has(path, field, reader.schema.names)
            for batch in reader:
                yield from (text for text in batch.column(field).to_pylist() if text is not None)
    except pa.ArrowInvalid as error:
        raise CutawayError(f"{path.name} cannot be read: {error}") from error


def _has(path: Path, field: str, names: Sequence[str]) -> None:
    if field not in names:
        raise UsageError(f"{path.name}: no column {field!r}{nearest(field, names)}")
