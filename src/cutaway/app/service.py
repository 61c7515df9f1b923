"""One thread that owns the model and decodes for everybody.

1. Requests become rows. Rows under the same edits form a group and share every forward, whoever asked.
2. Groups take turns of a fraction of a second; inside a turn rows leave as they end and waiting ones take their seats.
3. Each row draws from its own seed, so that an answer does not depend on its company.
4. What is cancelled, or late, gives up its seat before the next step. Rows, waiting rows, keys and values are bounded.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cutaway.app.monitors import Monitor, Watch
from cutaway.errors import CutawayError, UsageError
from cutaway.model.edits import EditError
from cutaway.sampling.batch import Row, RowBatch
from cutaway.sampling.kv import common_length
from cutaway.sampling.local import LocalEngine, check_edits
from cutaway.sampling.types import Finish, Request, Settings

if TYPE_CHECKING:
    from cutaway.model import Edit, Model

TURN_SECONDS = 0.25
PREFILL_TOKENS = 2048
"""Prompt tokens read between two steps, or one prompt: others wait for it."""


@dataclass(frozen=True)
class Limits:
    """How much the service takes on."""

    rows: int = 32
    """Rows decoded at once."""
    waiting: int = 256
    """Rows that may wait for a seat; a request beyond them is refused."""
    context: int = 8192
    """Longest prompt and answer together, in tokens; the model's own limit where that is lower."""
    choices: int = 32
    """Most rows of one request."""
    seconds: float = 300.0
    """Longest time for one request, its wait included."""
    cache_bytes: int = 2 << 30
    """Keys and values of all rows; a single row is always let in."""


class BusyError(CutawayError):
    """Too many rows wait already; answered with 429."""

    status = 429


class LateError(CutawayError):
    """A request took longer than is allowed; answered with 408."""

    status = 408


class GoneError(CutawayError):
    """The service has stopped; answered with 503."""

    status = 503


@dataclass(frozen=True)
class Piece:
    """What one choice has gained since its last piece."""

    choice: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...]
    scores: tuple[dict[str, float | None], ...]
    """One for each token, by monitor; empty where nothing is monitored."""
    finish: Finish | None


@dataclass(eq=False)
class Job:
    """One request: several choices that continue one prefix."""

    prefix: tuple[int, ...]
    choices: int
    settings: Settings
    seed: int
    tell: Callable[["Piece | CutawayError"], None]
    """Called on the service's thread with every piece, and at most once with an error, which ends the job."""
    edits: "tuple[Edit, ...]" = ()
    monitors: tuple[Monitor, ...] = ()
    top: int = 0
    """Most likely tokens to name at each place."""
    live: bool = False
    """Whether pieces are wanted token by token; otherwise each choice comes as one."""
    seconds: float = math.inf
    deadline: float = field(default=math.inf, init=False)
    open: int = field(default=0, init=False)
    """Choices that have not ended."""


def row_seed(seed: int, choice: int) -> int:
    """The seed of one choice: the request's own for the first, and none that another request's seed could give."""
    return seed % 2**64 + (choice << 64)


@dataclass(eq=False)
class _Seat:
    job: Job
    choice: int
    prefix: tuple[int, ...]
    told: int = 0
    scores: list[dict[str, float | None]] = field(default_factory=list)


@dataclass(eq=False)
class _Group:
    edits: "tuple[Edit, ...]"
    unproven: set[int]
    """Edits at every position that have not changed anything yet."""
    waiting: deque[_Seat] = field(default_factory=deque)
    entering: list[_Seat] = field(default_factory=list)
    """Taken from those waiting, and not yet among the batch's rows."""
    batch: RowBatch | None = None

    @property
    def rows(self) -> list[Row]:
        return self.batch.rows if self.batch is not None else []

    def seats(self) -> list[_Seat]:
        return [*(row.owner for row in self.rows), *self.entering, *self.waiting]


class _Turn:
    def __init__(self) -> None:
        self.granted, self.done = threading.Event(), threading.Event()


class ModelLock(contextlib.AbstractContextManager[None]):
    """Holds a service's model for the thread inside."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._mine = threading.local()

    def __enter__(self) -> None:
        self._mine.held = self._service.borrowed()
        self._mine.held.__enter__()

    def __exit__(self, *about: object) -> None:
        self._mine.held.__exit__(None, None, None)


class Service:
    """Decodes for many; `close` it when done. Every method may be called from any thread."""

    def __init__(self, model: "Model", limits: Limits | None = None) -> None:
        self.model = model
        self.limits = limits or Limits()
        self.context = min(model.n_ctx, self.limits.context)
        self._engine = LocalEngine(model, self.limits.rows)
        self._watch = Watch(model)
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._wake = threading.Condition()
        self._new: list[Job | _Turn] = []
        self._gone: set[Job] = set()
        self._load = 0
        self._closed = False
        config = model.hf.config.get_text_config()
        width = 2 * config.num_hidden_layers * model.n_kv_heads * model.d_head * model.dtype.itemsize
        self._room = max(1, self.limits.cache_bytes // width)
        """Tokens of keys and values that all rows may hold."""
        self._thread = threading.Thread(target=self._run, name="cutaway-service", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. UsageError for one that can never be served, BusyError when too many rows wait."""
        self._check(job)
        job.deadline = time.monotonic() + min(job.seconds, self.limits.seconds)
        job.open = job.choices
        with self._wake:
            if self._closed:
                raise GoneError("the service has stopped")
            if self._load + job.choices > self.limits.rows + self.limits.waiting:
                raise BusyError(f"{self._load} rows are at work or waiting; try again later")
            self._load += job.choices
            self._new.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """End a job, if it has not ended; its rows are gone before the next step. Nothing more is told of it."""
        with self._wake:
            if job.open:
                self._gone.add(job)
                self._wake.notify()

    @contextlib.contextmanager
    def borrowed(self) -> "Iterator[Model]":
        """The model, between two turns, for as long as the block lasts; everybody else waits."""
        turn = _Turn()
        with self._wake:
            if self._closed:
                raise GoneError("the service has stopped")
            self._new.append(turn)
            self._wake.notify()
        turn.granted.wait()
        try:
            yield self.model
        finally:
            turn.done.set()

    @property
    def lock(self) -> "ModelLock":
        """`borrowed` as a lock that can be taken again and again."""
        return ModelLock(self)

    @property
    def load(self) -> int:
        """Rows at work or waiting."""
        return self._load

    def close(self) -> None:
        """Stop; open jobs are told so."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _check(self, job: Job) -> None:
        if not 1 <= job.choices <= self.limits.choices:
            raise UsageError(f"{job.choices} choices asked for: must be 1..{self.limits.choices}")
        longest = len(job.prefix) + job.settings.max_tokens
        if longest > self.context:
            raise UsageError(
                f"the prompt's {len(job.prefix)} tokens and {job.settings.max_tokens} new ones exceed the context of"
                f" {self.context}; shorten the prompt or lower max_tokens"
            )
        self._engine.check(Request(job.prefix, (row_seed(job.seed, 0),), job.settings))
        check_edits(job.edits)
        for edit in job.edits:
            first = _first_position(edit)
            if first >= longest:
                raise UsageError(f"{edit!r}: position {first} lies beyond the {longest} tokens of this request")

    def _run(self) -> None:
        try:
            while self._listen():
                for key, group in list(self._groups.items()):
                    self._turn(group)
                    if not group.rows and not group.waiting:
                        del self._groups[key]
                    if self._stirred():
                        break
        finally:
            with self._wake:
                self._closed = True
                late, self._new = self._new, []
            for each in late:
                if isinstance(each, _Turn):
                    each.granted.set()
                else:
                    self._fail(each, GoneError("the service has stopped"))
            for group in self._groups.values():
                self._fail_all(group, GoneError("the service has stopped"))

    def _stirred(self) -> bool:
        return bool(self._new or self._gone or self._closed)

    def _listen(self) -> bool:
        """Take in what was asked since; wait while there is nothing to do. False when the service closes."""
        with self._wake:
            while not (self._stirred() or self._groups):
                self._wake.wait()
            new, self._new = self._new, []
            gone, self._gone = self._gone, set()
            if self._closed:
                self._new = new
                return False
        for each in new:
            if isinstance(each, _Turn):
                each.granted.set()
                each.done.wait()
            else:
                self._enter(each)
        now = time.monotonic()
        for group in self._groups.values():
            for job in {seat.job for seat in group.seats()}:
                if job in gone:
                    self._remove(group, job)
                elif now > job.deadline:
                    self._remove(group, job)
                    self._fail(job, LateError(f"the request took longer than {self.limits.seconds:g} s"))
        # Turns go round: the group served first is last next time.
        for key in list(self._groups)[:1]:
            self._groups[key] = self._groups.pop(key)
        return True

    def _enter(self, job: Job) -> None:
        key = tuple(edit.digest for edit in job.edits)
        if key not in self._groups:
            self._groups[key] = _Group(job.edits, {i for i, edit in enumerate(job.edits) if _everywhere(edit)})
        self._groups[key].waiting.extend(_Seat(job, choice, job.prefix) for choice in range(job.choices))

    def _remove(self, group: _Group, job: Job) -> None:
        """Free the job's rows; nothing is told."""
        for row in [row for row in group.rows if row.owner.job is job]:
            assert group.batch is not None
            group.batch.drop(row)
        group.waiting = deque(seat for seat in group.waiting if seat.job is not job)
        self._release(job, job.open)

    def _release(self, job: Job, choices: int) -> None:
        with self._wake:
            job.open -= choices
            self._load -= choices

    def _fail(self, job: Job, error: CutawayError) -> None:
        if job.open:
            self._release(job, job.open)
        job.tell(error)

    def _fail_all(self, group: _Group, error: CutawayError) -> None:
        jobs = {seat.job: None for seat in group.seats()}
        group.batch = None
        group.entering.clear()
        group.waiting.clear()
        for job in jobs:
            self._fail(job, error)

    def _turn(self, group: _Group) -> None:
        try:
            self._decode(group)
        except CutawayError as error:
            self._fail_all(group, error)
        except (RuntimeError, MemoryError) as error:  # what torch raises; this group ends, the service does not
            self._fail_all(group, CutawayError(f"the model failed: {' '.join(str(error).split())[:200]}"))

    def _decode(self, group: _Group) -> None:
        """Step the group until its turn is over, or somebody has something to say."""
        end = time.monotonic() + TURN_SECONDS
        proving = bool(group.unproven)
        done: list[Row] = []
        with contextlib.ExitStack() as stack:
            for i, edit in enumerate(group.edits):
                stack.enter_context(self._applied(group, i, edit))
            stack.enter_context(self._watch.on({m: None for seat in group.seats() for m in seat.job.monitors}))
            while group.rows or group.waiting:
                fresh = self._admit(group)
                if not fresh and not group.rows:
                    return
                assert group.batch is not None
                group.entering = [row.owner for row in fresh]
                done = group.batch.advance(fresh)
                group.entering.clear()
                if proving:
                    break
                self._tell(group, done)
                if self._stirred() or time.monotonic() > end:
                    break
        if proving:
            if group.unproven:
                edit = group.edits[min(group.unproven)]
                for row in done:
                    group.waiting.append(row.owner)
                raise UsageError(f"{edit!r} changed nothing: the values were already so; check its values")
            self._tell(group, done)
        if not group.rows:
            group.batch = None

    @contextlib.contextmanager
    def _applied(self, group: _Group, place: int, edit: "Edit") -> Iterator[None]:
        # Each in a context of its own, so that it is known which of several has changed something.
        try:
            with self.model.edited(edit):
                yield
            group.unproven.discard(place)
        except EditError:
            pass

    def _admit(self, group: _Group) -> list[Row]:
        """Rows that take a seat now, as many as there are seats, memory and patience for prompts."""
        starving = any(not each.rows and each.waiting for each in self._groups.values() if each is not group)
        if not group.waiting or (group.rows and starving):
            return []
        others = sum(len(each.rows) for each in self._groups.values() if each is not group)
        if group.batch is None:
            if others >= self.limits.rows:
                return []
            if group.edits:
                self._engine.forget()  # an edit must meet a forward pass to be seen at work
            trunk = self._engine.trunk(group.waiting[0].prefix, group.edits)
            watch = self._note
            group.batch = RowBatch(self.model, trunk, self.limits.rows, spend=self._engine.spend, watch=watch)
        batch, read = group.batch, 0
        fresh: list[Row] = []
        while group.waiting and others + len(batch.rows) + len(fresh) < self.limits.rows:
            row = self._row(group.waiting[0], batch.trunk.ids)
            crowd = [*batch.rows, *fresh, row]
            alone = len(crowd) == 1 and not others
            if not alone and ((read and read + len(row.rest) > PREFILL_TOKENS) or not self._fits(group, crowd)):
                break
            fresh.append(row)
            read += len(row.rest)
            group.waiting.popleft()
        batch.expect(fresh)
        return fresh

    def _row(self, seat: _Seat, trunk: tuple[int, ...]) -> Row:
        shared = common_length(trunk, seat.prefix)
        return Row(
            owner=seat,
            seed=row_seed(seat.job.seed, seat.choice),
            prefix_length=shared,
            rest=seat.prefix[shared:],
            settings=seat.job.settings,
            top=seat.job.top,
            read_last=bool(seat.job.monitors),
        )

    def _fits(self, group: _Group, crowd: Sequence[Row]) -> bool:
        """Whether the keys and values of all groups find room, this one's rows being ``crowd``."""
        total = _held(crowd)
        for each in self._groups.values():
            if each.batch is not None:
                total += len(each.batch.trunk.ids) + (0 if each is group else _held(each.rows))
        return total <= self._room

    def _note(self, rows: Sequence[Row]) -> None:
        wanted = [row.owner.job.monitors for row in rows]
        if any(wanted):
            for row, scores in zip(rows, self._watch.scores(wanted), strict=True):
                if row.owner.job.monitors:
                    row.owner.scores.append(scores)

    def _tell(self, group: _Group, done: Sequence[Row]) -> None:
        """Pass on what is new: of live jobs at every step, of others when a row ends."""
        ended = set(map(id, done))
        for row in [*done, *(row for row in group.rows if row.owner.job.live)]:
            seat, over = row.owner, id(row) in ended
            # A monitored token is told once it has been scored.
            known = len(seat.scores) if seat.job.monitors else len(row.ids)
            new = slice(seat.told, known)
            if not over and known == seat.told:
                continue
            if not all(map(math.isfinite, row.logprobs[new])):
                self._remove(group, seat.job)
                self._fail(seat.job, UsageError("the model's numbers are no longer finite; weaken the edits"))
                continue
            if seat.job.open == 0:
                continue  # another of its choices failed just now
            seat.told = known
            if over:
                self._release(seat.job, 1)
            seat.job.tell(
                Piece(
                    seat.choice,
                    tuple(row.ids[new]),
                    tuple(row.logprobs[new]),
                    tuple(row.tops[new]),
                    tuple(seat.scores[new]),
                    row.finish if over else None,
                )
            )


def _held(rows: Sequence[Row]) -> int:
    # Buffers are as long as the longest row in them.
    return len(rows) * max((len(row.rest) + row.settings.max_tokens for row in rows), default=0)


def _everywhere(edit: "Edit") -> bool:
    return all(getattr(edit, name, None) is None for name in ("positions", "queries", "keys"))


def _first_position(edit: "Edit") -> int:
    """The first position at which an edit could act."""
    first = 0
    for name in ("positions", "queries", "keys"):
        given = getattr(edit, name, None)
        if isinstance(given, slice):
            first = max(first, given.start or 0)
        elif given is not None:
            first = max(first, min(given))
    return first
