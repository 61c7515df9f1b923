"""The query-circuits study: config, wiring, findings and calibration."""

import json
import time
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cutaway.errors import UsageError
from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.circuits.query_circuits.data import Queries, Query
    from cutaway.model import Model


class QueryCircuitsConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "float32"
    """Small differences are multiplied and divided here; coarser types lose them."""
    task: Literal["indirect objects", "sums", "products", "choices"] = "indirect objects"
    """What is asked: who was given the thing, a sum, a product, or a multiple-choice question."""
    subject: str = "astronomy"
    """Of multiple-choice questions: a subject, or a JSON-lines file with question, A, B, C, D, answer."""
    operands: int = Field(2, ge=2, le=5)
    """Of sums and products."""
    queries: int = Field(20, ge=1)
    """How many queries to explain, of those the model answers rightly."""
    wordings: int = Field(9, ge=0)
    """Other wordings of each query; the search is best of these and the query itself."""
    sizes: tuple[int, ...] = (50, 100, 250, 500, 1000, 2000, 5000, 10000)
    """Edges to keep, before pruning."""
    ways: tuple[str, ...] = ("single", "wordings", "mean", "random")
    """How to search; also 'noise 0.01', 'noise 0.001', 'swap 0.1', 'swap 0.3'."""
    steps: int = Field(20, ge=1)
    """Points of the integrated gradient."""
    grouping: Literal["shared", "expanded"] = "shared"
    """Keys and values have one reader for each key-value head, or for each query head."""
    longest: int = Field(120, ge=10)
    """Multiple-choice prompts of more tokens are left out."""
    wrong_too: bool = False
    """Explain queries that the model answers wrongly as well."""
    circuits: int = Field(3, ge=0)
    """How many circuits to store as files."""
    seed: int = 0
    """Of queries, wordings, noise and random search."""


@study
class QueryCircuitsStudy(Study[QueryCircuitsConfig]):
    id = "query-circuits"
    title = "The small part of a model that answers one prompt"
    paper = "Wu, Barez 2025, arXiv:2509.24808"
    status = "best-of-N search, held-out NDF, random control; calibrated"
    Config = QueryCircuitsConfig

    def run(self, config: QueryCircuitsConfig, lab: Lab) -> Findings:
        """Draw queries, find their circuits, run the winners where they were not chosen."""
        from cutaway.circuits.query_circuits.candidates import Search
        from cutaway.circuits.query_circuits.method import search_circuits
        from cutaway.circuits.query_circuits.report import charts, drawing, files, findings, summarise
        from cutaway.circuits.view import LARGEST

        search = Search(config.sizes, config.ways, config.steps, seed=config.seed)
        model = lab.model(config.model, config.dtype)
        queries, wrong = drawn(config, model)
        found = search_circuits(
            model,
            queries.items,
            search,
            grouping=config.grouping,
            folder=lab.folder("circuits", "queries"),
            tick=lambda done, total, note: lab.progress(Progress(done, total, "queries", note)),
        )
        if not found.queries:
            return Findings((), "stopped before the first query was finished", complete=False, result=found)
        artifacts = files(found, config.circuits)
        if any(0 < mask.sum() <= LARGEST for mask in found.queries[0].masks):
            view = drawing(model, found, queries.items[0])
            artifacts["circuit.json"] = (json.dumps(view.to_dict(), ensure_ascii=False) + "\n").encode()
        return Findings(
            items=findings(found, queries, wrong),
            summary=summarise(found),
            artifacts=artifacts,
            inputs={f"weights:{model.name}": model.fingerprint},
            complete=found.complete,
            result=found,
            charts=charts(found),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Known circuits recovered, held-out and random figures, and silence where the answer cannot change."""
        from cutaway.circuits.query_circuits.calibration import rates

        started, trials = time.monotonic(), 30 if trials is None else trials
        found = rates(trials, lambda done: lab.progress(Progress(float(done), float(trials), "trials")))
        return Calibration(self.id, found, time.monotonic() - started, {"trials": trials})


def drawn(config: QueryCircuitsConfig, model: "Model") -> "tuple[Queries, int]":
    """Return the queries to explain, and how many were left out because the model answers them wrongly."""
    from cutaway.circuits.query_circuits.choices import multiple_choice, read_questions
    from cutaway.circuits.query_circuits.data import arithmetic, indirect_objects

    wanted = config.queries if config.wrong_too else 3 * config.queries
    if config.task == "choices":
        questions = read_questions(config.subject)
        found = multiple_choice(
            model, questions, wanted, wordings=config.wordings, longest=config.longest, seed=config.seed
        )
    elif config.task == "indirect objects":
        found = indirect_objects(model, wanted, wordings=config.wordings, seed=config.seed)
    else:
        operation, operands = config.task.removesuffix("s"), config.operands
        found = arithmetic(model, wanted, operation, operands=operands, wordings=config.wordings, seed=config.seed)
    if config.wrong_too:
        return found, 0
    return _right(found, model, config.queries)


def _right(found: "Queries", model: "Model", n: int) -> "tuple[Queries, int]":
    """Return the first ``n`` queries that the model answers rightly: its measure is above 0."""
    import torch

    from cutaway.circuits.pairs import Pairs
    from cutaway.circuits.query_circuits.data import Queries

    right: list[Query] = []
    wrong = 0
    for query in found.items:
        if len(right) == n:
            break
        with torch.no_grad():
            logits = model.logits(model.batch([list(query.pair.clean)]))[:, -1]
        if float(Pairs((query.pair,)).value(logits)) > 0:
            right.append(query)
        else:
            wrong += 1
    if not right:
        raise UsageError(
            f"{model.name} answers none of {len(found)} {found.kind} queries rightly; set wrong_too=true to explain"
            " them all the same, or ask something easier"
        )
    return Queries(found.kind, tuple(right), found.left_out), wrong
