"""The service against the local engine and plain forward passes; what is cancelled, late or broken ends alone."""

import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from served import settle

from cutaway.app.monitors import monitor_of
from cutaway.app.service import BusyError, GoneError, Job, LateError, Limits, Piece, Service, row_seed
from cutaway.errors import CutawayError, UsageError
from cutaway.model import Add, AttentionMask, Edit, Mask, Model, Scale
from cutaway.probes import LinearProbe
from cutaway.sampling import LocalEngine, Request, Rollout, Settings

WARM = Settings(temperature=1.0, top_p=0.95, max_tokens=14)


class Asked(Job):
    """A job that keeps what it is told."""

    def __init__(self, text: str | tuple[int, ...], model: Model, choices: int = 1, **more: object) -> None:
        self.told: queue.Queue[Piece | CutawayError] = queue.Queue()
        prefix = tuple(model.encode(text)) if isinstance(text, str) else text
        settings = more.pop("settings", WARM)
        super().__init__(prefix, choices, settings, more.pop("seed", 5), self.told.put, **more)  # type: ignore[arg-type]

    def result(self, seconds: float = 30.0) -> list[list[Piece]]:
        """Each choice's pieces, once all have ended."""
        pieces: list[list[Piece]] = [[] for _ in range(self.choices)]
        while any(not found or found[-1].finish is None for found in pieces):
            told = self.told.get(timeout=seconds)
            if isinstance(told, CutawayError):
                raise told
            pieces[told.choice].append(told)
        return pieces


@pytest.fixture(scope="module")
def service(tiny: Model) -> Iterator[Service]:
    made = Service(tiny)
    yield made
    made.close()


def alone(model: Model, job: Job, choice: int = 0) -> Rollout:
    """What the local engine makes of one choice, by itself; no service may be at work on the model."""
    request = Request(job.prefix, (row_seed(job.seed, choice),), job.settings)
    ((_, rollout),) = LocalEngine(model).stream([request], job.edits)
    return rollout


def results(service: Service, *jobs: Asked) -> list[tuple[Asked, list[list[Piece]]]]:
    """All jobs with their results, once nothing is at work."""
    found = [(job, job.result()) for job in jobs]
    settle(service)
    return found


def joined(pieces: list[Piece]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.ids)


def steered(model: Model, scale: float = 2.0) -> tuple[Edit, ...]:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    return (Add("resid_post.0", vector, scale), Mask("z.1", (2,)))


def probe(model: Model, site: str = "resid_post.1", d: int | None = None) -> LinearProbe:
    return LinearProbe(torch.randn(d or model.d_model, generator=torch.Generator().manual_seed(2)), 0.5, site)


def test_rows_join_a_running_batch_and_are_the_local_engines(tiny: Model, service: Service) -> None:
    texts = ["the cat", "the cat sat on", "a dog", "the", "zebra, zebra", "The end. The end."]
    jobs = [
        Asked(text, tiny, choices=1 + i % 3, seed=i, live=i % 2 == 0, edits=steered(tiny) if i % 3 == 1 else (),
              settings=replace(WARM, max_tokens=8 + 5 * i, temperature=0.0 if i == 4 else 1.0))
        for i, text in enumerate(texts)
    ]  # fmt: skip
    for job in jobs:
        service.submit(job)
        time.sleep(0.02)
    for job, found in results(service, *jobs):
        for choice, pieces in enumerate(found):
            expected = alone(tiny, job, choice)
            assert joined(pieces) == expected.ids
            assert [x for piece in pieces for x in piece.logprobs] == pytest.approx(list(expected.logprobs), abs=1e-4)
            assert pieces[-1].finish == expected.finish
            assert len(pieces) > 1 or not job.live or len(expected.ids) == 1


@pytest.mark.parametrize("edited", [False, True])
def test_scores_are_the_probe_on_a_plain_forward(tiny: Model, service: Service, edited: bool) -> None:
    edits = steered(tiny) if edited else ()
    heads, inner = tiny.n_heads * tiny.d_head, tiny.layout.dims("neurons")[0]
    monitors = (
        monitor_of(tiny, "late", probe(tiny)),
        monitor_of(tiny, "early", probe(tiny, "resid_pre.0")),
        monitor_of(tiny, "heads", probe(tiny, "z.0", heads)),
        monitor_of(tiny, "one", probe(tiny, "z.0.1", tiny.d_head)),
        monitor_of(tiny, "neurons", probe(tiny, "neurons.1", inner)),
    )
    jobs = [
        Asked("the cat", tiny, 2, monitors=monitors, edits=edits),
        Asked("some other text", tiny, 1, monitors=monitors[:1], edits=edits, live=True),
        Asked("no monitor here", tiny, 1, edits=edits),
        Asked("x", tiny, 1, monitors=monitors[1:2], edits=edits, settings=replace(WARM, max_tokens=1)),
    ]
    for job in jobs:
        service.submit(job)
    for job, found in results(service, *jobs):
        for choice, pieces in enumerate(found):
            ids, scores = joined(pieces), [each for piece in pieces for each in piece.scores]
            assert ids == alone(tiny, job, choice).ids
            assert len(scores) == (len(ids) if job.monitors else 0)
            for monitor in job.monitors:
                with torch.no_grad(), tiny.edited(*edits):
                    seen = tiny.capture([[*job.prefix, *ids]], [monitor.probe.site, "logits"], special=True)
                expected = monitor.probe.scores(seen[monitor.probe.site][0, len(job.prefix) :].flatten(1)).tolist()
                assert [each[monitor.name] for each in scores] == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_tops_are_the_softmax_of_a_plain_forward(tiny: Model, service: Service) -> None:
    job = Asked("the cat", tiny, top=3)
    service.submit(job)
    ((_, (pieces,)),) = results(service, job)
    with torch.no_grad():
        logprobs = tiny.logits(tiny.batch([[*job.prefix, *joined(pieces)]]))[0].log_softmax(-1)
    for place, tops in enumerate(tops for piece in pieces for tops in piece.tops):
        values, ids = logprobs[len(job.prefix) - 1 + place].topk(3)
        assert [token for token, _ in tops] == ids.tolist()
        assert [value for _, value in tops] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_cancelled_job_frees_its_rows_and_disturbs_nobody(tiny: Model, service: Service) -> None:
    long = replace(WARM, max_tokens=80, stop=())
    given_up = [Asked("the cat", tiny, 3, settings=long, seed=i, live=True) for i in range(3)]
    stays = Asked("the cat sat", tiny, 2, settings=replace(long, max_tokens=60))
    for job in [given_up[0], stays, *given_up[1:]]:
        service.submit(job)
    given_up[0].told.get(timeout=10)
    for job in given_up:
        service.cancel(job)
        service.cancel(job)  # twice is once
    ((_, found),) = results(service, stays)
    assert [joined(pieces) for pieces in found] == [alone(tiny, stays, choice).ids for choice in range(2)]


def test_time_and_queue_are_bounded(tiny: Model) -> None:
    service = Service(tiny, Limits(rows=2, waiting=2, seconds=0.15))
    long = replace(WARM, max_tokens=80, temperature=0.0)
    with service.borrowed():
        late = Asked("the cat", tiny, 2, settings=long)
        service.submit(late)
        service.submit(Asked("the cat", tiny, 2, settings=long))
        with pytest.raises(BusyError, match="4 rows"):
            service.submit(Asked("the cat", tiny, settings=long))
        time.sleep(0.2)
    with pytest.raises(LateError, match=r"0\.15 s"):
        late.result()
    settle(service)
    service.close()
    with pytest.raises(GoneError):
        service.submit(late)


def test_closing_tells_those_who_wait(tiny: Model) -> None:
    service = Service(tiny, Limits(rows=1))
    jobs = [Asked("the cat", tiny, settings=replace(WARM, max_tokens=80)) for _ in range(3)]
    with service.borrowed():
        for job in jobs:
            service.submit(job)
        closing = threading.Thread(target=service.close)
        closing.start()
        time.sleep(0.05)
    closing.join(10)
    assert not closing.is_alive()
    for job in jobs:
        with pytest.raises(GoneError):
            job.result(5)


def test_little_memory_and_few_seats_make_it_slower_not_wrong(tiny: Model) -> None:
    service = Service(tiny, Limits(rows=3, cache_bytes=1))
    jobs = [Asked(text, tiny, 3, edits=steered(tiny) if i else ()) for i, text in enumerate(["the cat", "a", "b"])]
    for job in jobs:
        service.submit(job)
    for job, found in results(service, *jobs):
        assert [joined(pieces) for pieces in found] == [alone(tiny, job, c).ids for c in range(3)]
    service.close()


def test_a_group_that_waits_is_not_kept_out_by_one_that_never_rests(tiny: Model) -> None:
    service = Service(tiny, Limits(rows=2, waiting=100))
    # Longer than a few turns of a fast machine, which may end all of a small crowd before the other one is asked after.
    long = replace(WARM, max_tokens=60)
    crowd = [Asked("the cat", tiny, 2, seed=i, settings=long) for i in range(12)]
    other = Asked("the cat", tiny, 1, edits=steered(tiny))
    with service.borrowed():
        for job in [*crowd[:6], other, *crowd[6:]]:
            service.submit(job)
    other.result()
    assert service.load > 4
    for job in crowd:
        job.result()
    service.close()


@pytest.mark.parametrize(
    ("edits", "match"),
    [
        ((Scale("resid_post.0", 1.0),), "changed nothing"),
        ((Add("resid_post.0", torch.zeros(32)),), "changed nothing"),
        ((Add("resid_post.9", torch.ones(32)),), "must be 0..1"),
        ((Add("resid_post.0", torch.ones(31)),), "does not fit"),
        ((Add("resid_post.0", torch.full((32,), math.inf)),), "no longer finite"),
        ((Scale("resid_post.0", 2.0), Scale("resid_post.1", 1.0)), "changed nothing"),
    ],
)
def test_a_bad_edit_ends_its_own_jobs_only(tiny: Model, service: Service, edits: tuple[Edit, ...], match: str) -> None:
    bad, good = Asked("the cat", tiny, 2, edits=edits), Asked("the cat", tiny, 2)
    service.submit(good)
    service.submit(bad)
    with pytest.raises(CutawayError, match=match):
        bad.result()
    ((_, found),) = results(service, good)
    assert [joined(pieces) for pieces in found] == [alone(tiny, good, choice).ids for choice in range(2)]


def test_what_can_never_be_served_is_refused_at_once(tiny: Model, service: Service) -> None:
    with pytest.raises(UsageError, match="context of 96"):
        service.submit(Asked("a" * 90, tiny))
    with pytest.raises(UsageError, match="choices asked for"):
        service.submit(Asked("a", tiny, 33))
    with pytest.raises(UsageError, match="prefix is empty"):
        service.submit(Asked("", tiny))
    with pytest.raises(UsageError, match="vocabulary"):
        service.submit(Asked((5, 6, 1000), tiny))
    with pytest.raises(UsageError, match="position 40 lies beyond"):
        service.submit(Asked("abc", tiny, edits=(Scale("resid_post.0", 2.0, (40,)),)))
    with pytest.raises(UsageError, match="differ between prefixes"):
        service.submit(Asked("abc", tiny, edits=(Scale("resid_post.0", 2.0, "last"),)))
    assert service.load == 0


def test_edits_at_positions_work_on_every_row_that_joins(tiny: Model, service: Service) -> None:
    edits = (Scale("resid_post.0", -1.0, slice(5, 9)), AttentionMask(0, keys=(1,)))
    jobs = [Asked(text, tiny, edits=edits, seed=i) for i, text in enumerate(["the cat sat", "a cat", "the dog, "])]
    for job in jobs:
        service.submit(job)
        time.sleep(0.01)
    for job, found in results(service, *jobs):
        assert joined(found[0]) == alone(tiny, job).ids


def test_the_model_can_be_borrowed_between_two_turns(tiny: Model, service: Service) -> None:
    job = Asked("the cat", tiny, 4, settings=replace(WARM, max_tokens=60))
    service.submit(job)
    for _ in range(3):
        with service.lock, torch.no_grad():
            tiny.logits(tiny.batch([[5, 6, 7]]))
    ((_, found),) = results(service, job)
    assert [joined(pieces) for pieces in found] == [alone(tiny, job, choice).ids for choice in range(4)]
