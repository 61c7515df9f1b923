"""The branch tree against a dictionary, and against kills, neighbours, full disks and damage."""

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from chain_engine import ChainEngine, requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutaway.errors import CutawayError, UsageError
from cutaway.sampling.tree import BranchTree, sample
from cutaway.sampling.types import Request, Rollout, Settings

PROGRAM = Path(__file__).with_name("chain_engine.py")
Key = tuple[Request, int]


def bare(request: Request) -> Request:
    return replace(request, seeds=())


def rounded(rollout: Rollout) -> Rollout:
    return replace(rollout, logprobs=tuple(round(x, 4) for x in rollout.logprobs))


def truth() -> dict[Key, Rollout]:
    engine = ChainEngine()
    return {(bare(r), s): rounded(engine.draw(r, s)) for r in requests() for s in r.seeds}


def content(folder: Path) -> dict[Key, Rollout]:
    with BranchTree.open(folder, "chain") as tree:
        pairs = [((bare(request), rollout.seed), rollout) for request, rollout in tree.rollouts()]
        assert len(pairs) == len(tree)
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def lines_of_rollouts(folder: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in (folder / "rollouts.jsonl").read_bytes().splitlines()]
    return [(r["request"], r["seed"]) for r in records if "seed" in r]


# Plain values only: checked types use `random` when built, which hypothesis forbids inside a strategy.
# Few tokens: prefixes share their beginnings.
some_requests = st.tuples(
    st.lists(st.integers(0, 2), max_size=4).map(tuple),
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.6, 1.0]),
            "top_p": st.sampled_from([0.95, 1.0]),
            "top_k": st.integers(0, 2),
            "max_tokens": st.integers(1, 3),
            "stop": st.sampled_from([(), ("\n",), ("é", '"')]),
        }
    ),
    st.sampled_from([None, 0, 1]),
)
some_rollouts = st.tuples(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2**31), st.floats(-50, 0) | st.just(math.nan)), max_size=5),
    st.sampled_from(["stop", "length"]),
)


class TestAgainstADictionary:
    @given(steps=st.lists(st.tuples(some_requests, some_rollouts, st.booleans()), max_size=25))
    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    def test_any_adds_and_reopenings(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, Any, bool]]
    ) -> None:
        folder = tmp_path_factory.mktemp("tree")
        model: dict[Key, Rollout] = {}
        tree, neighbour = BranchTree.open(folder, "chain"), BranchTree.open(folder, "chain")
        for (prefix, sampling, ban), (seed, row, finish), reopen in steps:
            request = Request(prefix, (0,), Settings(**sampling), ban)
            rollout = Rollout(seed, tuple(i for i, _ in row), tuple(x for _, x in row), finish)
            returned = tree.add(request, rollout)
            expected = replace(rollout, logprobs=tuple(x if math.isnan(x) else round(x, 4) for x in rollout.logprobs))
            kept = model.setdefault((bare(request), rollout.seed), expected)
            for found in (
                returned,
                tree.get(request, rollout.seed),
                neighbour.get(request, rollout.seed),
            ):
                assert repr(found) == repr(kept)  # repr: NaN equals NaN
            tree, neighbour = neighbour, tree
            if reopen:
                tree.close()
                tree = BranchTree.open(folder, "chain")
        tree.close()
        neighbour.close()
        assert repr(sorted(content(folder).items(), key=repr)) == repr(sorted(model.items(), key=repr))
        assert len(lines_of_rollouts(folder)) == len(model)

    def test_get_after_add_is_what_a_fresh_process_reads(self, tmp_path: Path) -> None:
        request = requests()[0]
        rollout = Rollout(0, (1, 2), (-0.123456789, math.nan), "stop")
        with BranchTree.open(tmp_path, "chain") as tree:
            added, got = tree.add(request, rollout), tree.get(request, 0)
        with BranchTree.open(tmp_path, "chain") as tree:
            assert tree.get(request, 0) == got == added == Rollout(0, (1, 2), (-0.1235, math.nan), "stop")

    def test_equal_settings_written_differently_are_one_key(self, tmp_path: Path) -> None:
        written = Settings(temperature=1.0, top_p=1.0)
        for name in ("temperature", "top_p"):
            object.__setattr__(written, name, 1)  # what a caller without a type checker gives
        request = Request((1,), (0,), written)
        twin = Request((1,), (7, 8), Settings(temperature=1.0, top_p=1.0))
        with BranchTree.open(tmp_path, "chain") as tree:
            tree.add(request, Rollout(7, (5,), (-1.0,), "stop"))
            assert tree.get(twin, 7) == Rollout(7, (5,), (-1.0,), "stop")

    def test_prefixes_share_their_beginning_on_disk(self, tmp_path: Path) -> None:
        text = tuple(range(5000))
        with BranchTree.open(tmp_path, "chain") as tree:
            for length in range(1000, 5001, 1000):
                request = Request(text[:length], (0,), Settings())
                tree.add(request, Rollout(0, (1,), (-1.0,), "stop"))
            assert [r.prefix for r, _ in tree.rollouts()] == [text[:n] for n in range(1000, 5001, 1000)]
        records = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_bytes().splitlines()]
        assert sum(len(r["ids"]) for r in records if "parent" in r) == 5000


class TestSample:
    def test_draws_only_what_is_missing(self, tmp_path: Path) -> None:
        first, second = ChainEngine(), ChainEngine()
        with BranchTree.open(tmp_path, "chain") as tree:
            half = [replace(r, seeds=r.seeds[:30]) for r in requests()]
            before = list(sample(tree, first, half))
            assert tree.cost.reused == 0
            after = list(sample(tree, second, requests()))
            assert after[: len(before)] == sorted(before, key=lambda pair: pair[0])
            assert tree.cost.reused == first.cost.decoded == sum(len(r.ids) for _, r in before)
        assert {(bare(requests()[i]), r.seed): r for i, r in after} == truth()
        assert second.cost.decoded == sum(len(r.ids) for _, r in after) - tree.cost.reused

    def test_twins_are_drawn_once_and_given_to_all(self, tmp_path: Path) -> None:
        request = replace(requests()[0], seeds=(1, 2, 1))
        engine = ChainEngine()
        with BranchTree.open(tmp_path, "chain") as tree:
            rows = list(sample(tree, engine, [request, request]))
            assert len(tree) == 2
        assert sorted((i, r.seed) for i, r in rows) == [(i, s) for i in (0, 1) for s in (1, 1, 2)]
        assert engine.cost.decoded == sum({r.seed: len(r.ids) for _, r in rows}.values())

    def test_stored_before_it_is_yielded(self, tmp_path: Path) -> None:
        with BranchTree.open(tmp_path, "chain") as tree, BranchTree.open(tmp_path, "chain") as other:
            for index, rollout in sample(tree, ChainEngine(), requests()[:1]):
                assert other.get(requests()[index], rollout.seed) == rollout

    def test_interrupt_keeps_what_was_drawn(self, tmp_path: Path) -> None:
        with BranchTree.open(tmp_path, "chain") as tree:
            rows = sample(tree, ChainEngine(), requests())
            for _ in range(100):
                next(rows)
            rows.close()
        assert len(content(tmp_path)) == 100

    def test_empty_work_calls_no_engine(self, tmp_path: Path) -> None:
        with BranchTree.open(tmp_path, "chain") as tree:
            assert list(sample(tree, ChainEngine(), [])) == []
            assert list(sample(tree, ChainEngine(), [replace(requests()[0], seeds=())])) == []


class TestProcesses:
    def start(self, folder: Path, delay: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(PROGRAM), str(folder), str(delay)])

    def test_killed_at_random_moments_then_resumed(self, tmp_path: Path) -> None:
        moments, log, alive = random.Random(5), tmp_path / "rollouts.jsonl", 0
        for _ in range(6):
            child = self.start(tmp_path, 0.002)
            size = log.stat().st_size if log.exists() else 0
            while child.poll() is None and (not log.exists() or log.stat().st_size <= size):
                time.sleep(0.001)  # sampling has begun
            time.sleep(moments.random() * 0.12)
            child.send_signal(signal.SIGKILL)
            alive += child.wait() == -signal.SIGKILL
        assert alive >= 4
        assert self.start(tmp_path, 0).wait() == 0
        assert content(tmp_path) == truth()
        assert len(lines_of_rollouts(tmp_path)) == len(truth())

    def test_two_at_once(self, tmp_path: Path) -> None:
        children = [self.start(tmp_path, 0.001) for _ in range(2)]
        assert [child.wait() for child in children] == [0, 0]
        assert content(tmp_path) == truth()
        assert len(lines_of_rollouts(tmp_path)) == len(truth())

    @pytest.mark.parametrize("limit", [20_000, 20_001, 20_123, 21_457])
    def test_full_disk(self, tmp_path: Path, limit: int) -> None:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(tmp_path), "0"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "CutawayError: cannot write to the branch tree" in last
        assert str(tmp_path) in last
        log = (tmp_path / "rollouts.jsonl").read_bytes()
        assert limit - 2000 < len(log) <= limit
        assert log.endswith(b"\n")
        kept = content(tmp_path)
        assert kept
        assert kept.items() <= truth().items()
        assert self.start(tmp_path, 0).wait() == 0
        assert content(tmp_path) == truth()


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        with BranchTree.open(tmp_path, "chain") as tree:
            list(sample(tree, ChainEngine(), requests()))
        return tmp_path

    @pytest.mark.parametrize("cut", [1, 5, 30, 200])
    def test_torn_last_line_is_taken_away(self, folder: Path, cut: int) -> None:
        log = folder / "rollouts.jsonl"
        os.truncate(log, log.stat().st_size - cut)
        kept = content(folder)
        assert len(kept) == len(truth()) - 1
        assert log.read_bytes().endswith(b"\n")
        with BranchTree.open(folder, "chain") as tree:
            list(sample(tree, ChainEngine(), requests()))
        assert content(folder) == truth()

    def test_torn_line_of_another_process_while_open(self, folder: Path) -> None:
        with BranchTree.open(folder, "chain") as tree:
            with (folder / "rollouts.jsonl").open("ab") as other:
                other.write(b'{"request":"half')
            new = replace(requests()[0], seeds=(99,))
            tree.add(new, ChainEngine().draw(new, 99))
        assert len(content(folder)) == len(truth()) + 1

    def test_damaged_line_costs_one_rollout(self, folder: Path) -> None:
        log = folder / "rollouts.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        middle = next(i for i in range(100, 200) if b'"seed"' in lines[i])
        undamaged = lines[middle]
        lines[middle] = undamaged.replace(b'"ids":[', b'"ids":[1', 1)
        log.write_bytes(b"".join(lines))
        with pytest.warns(UserWarning, match=r"rollouts.jsonl: 1 damaged line"):
            tree = BranchTree.open(folder, "chain")
        with tree:
            assert tree.damaged == 1
            engine = ChainEngine()
            rows = list(sample(tree, engine, requests()))
            assert {(bare(requests()[i]), r.seed): r for i, r in rows} == truth()
            assert len(tree) == len(truth())
        seed, rid = json.loads(undamaged)["seed"], json.loads(undamaged)["request"]
        assert engine.cost.decoded == len(json.loads(undamaged)["ids"])
        assert lines_of_rollouts(folder)[-1] == (rid, seed)

    def test_damaged_prefix_still_serves_by_key_and_heals(self, folder: Path) -> None:
        log = folder / "rollouts.jsonl"
        log.write_bytes(log.read_bytes().replace(b'"parent":null', b'"parent":nul1', 1))
        with pytest.warns(UserWarning, match="1 damaged"):
            tree = BranchTree.open(folder, "chain")
        with tree:
            assert list(tree.rollouts()) == []
            assert len(list(sample(tree, ChainEngine(), requests()))) == len(truth())
            assert tree.cost.decoded == 0
            more = [replace(r, seeds=(99,)) for r in requests()]
            list(sample(tree, ChainEngine(), more))
            assert len(list(tree.rollouts())) == len(truth()) + len(more)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 99}'])
    def test_unreadable_header(self, folder: Path, text: str) -> None:
        (folder / "tree.json").write_text(text)
        with pytest.raises(CutawayError, match="choose another folder"):
            BranchTree.open(folder, "chain")

    def test_missing_header(self, folder: Path) -> None:
        (folder / "tree.json").unlink()
        with pytest.raises(CutawayError, match=r"no tree\.json"):
            BranchTree.open(folder, "chain")

    def test_cut_under_an_open_tree(self, folder: Path) -> None:
        with BranchTree.open(folder, "chain") as tree:
            os.truncate(folder / "rollouts.jsonl", 100)
            with pytest.raises(CutawayError, match="cut by another program"):
                tree.get(replace(requests()[0], prefix=(49,)), 0)
            with pytest.raises(CutawayError, match="changed at byte"):
                tree.get(requests()[0], 5)


@dataclass(frozen=True)
class Named:
    digest: str


class Other(ChainEngine):
    identity = "other"


class TestRefusals:
    def test_foreign_identity(self, tmp_path: Path) -> None:
        BranchTree.open(tmp_path, "chain").close()
        with pytest.raises(UsageError, match="identity 'chain', not 'other'"):
            BranchTree.open(tmp_path, "other")
        with (
            BranchTree.open(tmp_path, "chain") as tree,
            pytest.raises(UsageError, match="engine is other"),
        ):
            sample(tree, Other(), requests())

    def test_foreign_edits(self, tmp_path: Path) -> None:
        edits: Sequence[Any] = (Named("a"), Named("b"))
        BranchTree.open(tmp_path, "chain", edits).close()
        for others in ((), (Named("b"), Named("a")), (Named("a"),)):
            with pytest.raises(UsageError, match="edits"):
                BranchTree.open(tmp_path, "chain", others)
        with BranchTree.open(tmp_path, "chain", edits) as tree:
            assert len(list(sample(tree, ChainEngine(), requests()[:1], edits))) == 60
            with pytest.raises(UsageError, match="under edits"):
                sample(tree, ChainEngine(), requests())

    def test_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CutawayError, match="cannot open the branch tree"):
            BranchTree.open(tmp_path / "file", "chain")

    def test_closed(self, tmp_path: Path) -> None:
        tree = BranchTree.open(tmp_path, "chain")
        tree.close()
        tree.close()
        with pytest.raises(UsageError, match="was closed"):
            tree.get(requests()[0], 0)


def test_iterator_types(tmp_path: Path) -> None:
    with BranchTree.open(tmp_path, "chain") as tree:
        assert isinstance(tree.rollouts(), Iterator)
        assert "0 rollouts of chain" in repr(tree)
