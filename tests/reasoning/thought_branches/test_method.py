"""All four analyses together: what they share, interruption, reports, the study's wiring."""

import json
from dataclasses import replace

import pytest
from planted_branches import QUICK, chain_with, planted, pool_of, tree_of

from cutaway.charts import charts_from_json
from cutaway.errors import UsageError
from cutaway.planted.branches import FOREIGN
from cutaway.reasoning.source import ask
from cutaway.reasoning.thought_branches.calibration import NULLS, TRANSPLANTS, chain_of, measure
from cutaway.reasoning.thought_branches.importance import importance
from cutaway.reasoning.thought_branches.method import Plan, analyse
from cutaway.reasoning.thought_branches.offpolicy import interventions
from cutaway.reasoning.thought_branches.report import charts, findings, view
from cutaway.reasoning.thought_branches.resilience import resilience
from cutaway.reasoning.thought_branches.study import ThoughtBranches, ThoughtBranchesConfig, _Question
from cutaway.reasoning.thought_branches.transplant import transplant
from cutaway.reasoning.view import TraceView
from cutaway.sampling import LocalEngine
from cutaway.study import Findings, get_study, parse_config

OPTIONS = {"driver": 3.0, "doubt": 2.0, "foreign": 0.5, "cue": 1.0, "step": 0.5, "stubborn": QUICK, "idea": 2.0}
SMALL = Plan(
    n=10,
    sentences=2,
    runs=3,
    n_inserted=5,
    n_moved=5,
    tries=40,
    texts={"doubt": FOREIGN},
    search=("doubt",),
    rounds=1,
)


@pytest.fixture(scope="module")
def everything():
    source = planted("dswlla", **OPTIONS)
    return source, chain_with(source, " Idea", " calmly")


def hints(source):
    return {
        "hint": source.hinted_ids,
        "hinted": [chain_of(source, k, hinted=True) for k in range(3)],
        "others": [source.hinted_ids],
    }


@pytest.fixture(scope="module")
def report(everything):
    source, chain = everything
    return analyse(pool_of(source), chain, source.model, SMALL, **hints(source))


def test_a_report_holds_all_four_answers(report):
    assert report.complete
    assert len(report.importance) == 5
    assert len(report.resilience) == 2
    assert {each.kind for each in report.interventions.items} >= {"handwritten", "on-policy", "other problem"}
    assert report.mediation.chains == 3
    assert len(report.swaps) == 5
    assert all(each.plus.rate.level == pytest.approx(0.975) for each in report.resilience)
    assert report.control.n_with == 5
    assert report.control.rate.low <= 0 <= report.control.rate.high
    assert "".join(report.sentences).startswith(" Plan")
    frame = report.to_frame()
    assert frame["plus"].notna().sum() == 2
    assert "importance++" in repr(report)


def test_a_report_is_plain_json(report, tmp_path):
    report.save(tmp_path / "branches.json")
    data = json.loads((tmp_path / "branches.json").read_text(), parse_constant=pytest.fail)
    assert data["resilience"][0]["runs"][0]["status"] in ("gone", "capped", "cut", "undefined")


def test_findings_view_and_charts(report):
    items = findings(report)
    found = Findings(items, "x", charts=charts(report))
    names = [item.name for item in items]
    assert "hint, total effect" in names
    assert all(item.control is not None for item in items if item.name.startswith("importance"))
    drawn = view(report, {})
    assert TraceView.from_dict(json.loads(json.dumps(drawn.to_dict()))) == drawn
    tracks = {track.name: track for track in drawn.tracks}
    assert sum(x is not None for x in tracks["resilience"].value) == 2
    assert tracks["importance++"].undefined[-1] == "not removed"
    assert drawn.curve.value[0] is not None
    titles = [chart.title for chart in charts_from_json(found.artifacts["charts.json"])]
    assert titles[0] == "How often a removed sentence comes back"
    assert {"What a text after sentence 1 changes", "How much hangs on what counts as the same"} <= set(titles)
    assert titles[-1].startswith("P(")


def spent_together_and_apart(n: int, runs: int, inserted: int) -> tuple[int, int]:
    """Tokens of four analyses of a chain, written under the hint and read without it: on one pool, and each alone."""
    source = planted("dswlla", **OPTIONS)
    hinted = chain_with(source, " Idea", hinted=True)
    chain = replace(hinted, trace=replace(hinted.trace, prompt=source.prompt_ids))
    cuts = [k / chain.body for k in range(chain.body + 1)]
    texts = {"texts": {"doubt": FOREIGN}, "search": ["doubt"], "n": inserted, "boundary": n}
    steps = (
        lambda pool: importance(pool, chain, n=n),
        lambda pool: [resilience(pool, chain, i, runs=runs, n=n, tries=60) for i in range(chain.body)],
        lambda pool: interventions(pool, chain, source.model, 1, **texts),
        lambda pool: transplant(pool, [hinted], source.prompt_ids, "1", n=n, fractions=cuts),
    )
    together, apart = pool_of(source), 0
    for step in steps:
        alone = pool_of(source, reuse=False)
        step(alone)
        step(together)
        apart += alone.engine.cost.decoded
    return together.engine.cost.decoded, apart


def test_sharing_saves_more_than_half_of_the_tokens():
    together, apart = spent_together_and_apart(n=12, runs=3, inserted=4)
    assert together < 0.5 * apart


@pytest.mark.slow
def test_sharing_saves_three_fifths_at_the_paper_s_numbers():
    """The card's bar, at 100 rollouts a boundary: too many draws for the fast tests."""
    together, apart = spent_together_and_apart(n=100, runs=30, inserted=30)
    assert together <= 0.4 * apart


def test_an_interrupted_run_goes_on_without_drawing_again(tmp_path):
    source = planted("swa", **OPTIONS)
    chain = chain_with(source, " Idea")
    options = hints(source)
    with tree_of(source, tmp_path / "whole") as tree:
        pool = pool_of(source, tree=tree)
        whole = analyse(pool, chain, source.model, SMALL, **options)
        needed = pool.engine.cost.decoded
    spent, stops = 0, [3, 40]
    for stop in [*stops, None]:
        seen = 0

        def report(done, planned, note, stop=stop):
            nonlocal seen
            seen += 1
            if seen == stop:
                raise KeyboardInterrupt

        with tree_of(source, tmp_path / "cut") as tree:
            pool = pool_of(source, tree=tree, report=report)
            found = analyse(pool, chain, source.model, SMALL, **options)
            spent += pool.engine.cost.decoded
        assert found.complete == (stop is None)
    assert found.to_dict() | {"cost": None} == whole.to_dict() | {"cost": None}
    assert spent <= needed * 1.02  # rows that were under way when it was cut are not stored


def test_chains_that_cannot_be_analysed_say_why(everything):
    source, chain = everything
    with pytest.raises(UsageError, match="has no answer"):
        analyse(pool_of(source), replace(chain, outcome=lambda text: None), source.model)
    bare = planted("a")
    with pytest.raises(UsageError, match="no sentence before"):
        analyse(pool_of(bare), chain_of(bare, 0), bare.model)


def test_notes_name_what_is_undefined():
    source = planted("dra", reason=(0.0, 1.0))
    chain = chain_of(source, 0)
    plan = Plan(n=20, sentences=0, also=(1,), runs=3, tries=3, texts={})
    found = analyse(pool_of(source), chain, source.model, plan)
    assert any("all but certain" in note for note in found.notes)
    assert any("importance++ of sentence 2: none of 3 runs" in note for note in found.notes)
    assert any("3 undefined of 3 runs" in note for note in found.notes)
    item = next(item for item in findings(found) if item.name == "importance++ of sentence 2")
    assert item.value is None


def test_the_study_is_registered_and_refuses_contradictions():
    found = get_study("thought-branches")
    assert isinstance(found, ThoughtBranches)
    config = parse_config(found, {"scenario": "vendor-order", "rollouts": "10"})
    assert config.rollouts == 10
    with pytest.raises(UsageError, match="give either scenario= or prompt="):
        parse_config(found, {})
    with pytest.raises(UsageError, match="brings its own cause"):
        parse_config(found, {"scenario": "vendor-order", "hint": "x"})
    assert ThoughtBranchesConfig(prompt="x").scenario == ""


@pytest.mark.parametrize("seed", [0, 3])
def test_the_chain_is_the_trace_that_other_studies_examine_and_costs_nothing_twice(seed, tmp_path):
    source = planted("dswlla", **OPTIONS)
    prompt = source.model.decode(source.prompt_ids)
    config = ThoughtBranchesConfig(prompt=prompt, outcome="number", temperature=1, top_p=1, max_tokens=300, seed=seed)
    with tree_of(source, tmp_path) as tree:
        pool = pool_of(source, seed=seed, tree=tree)
        engine = LocalEngine(source.model)
        asked = ask(engine, prompt, "number", settings=pool.settings, seed=seed, tree=tree)
        chain = _Question(config, source.model).chain(pool)
    assert chain.trace == asked.trace
    assert engine.cost.decoded > 0
    assert pool.engine.cost.decoded == 0


def test_calibration_in_small():
    seen = []
    rates = {rate.name: rate for rate in measure(1, seen.append, runs=4, n=16, chains=3)}
    assert seen == [0]
    assert rates["importance++ coverage"].trials == 3
    assert rates["false importance++"].trials == 3 * NULLS
    assert rates["importance++ coverage"].hits >= 2
    assert rates["false importance++"].hits <= 1
    assert rates["importance++ found"].hits == 2
    assert rates["transplant curve"].trials == TRANSPLANTS
    assert rates["transplant curve"].hits >= 2
    assert rates["false mediation"].trials == 2 * TRANSPLANTS
