"""The playground: one prompt, plain and steered, from the same seed; its settings can be kept as a run.

What is kept is measured anew by the server, not what the page showed: the seed makes it the same. The run holds the
settings, the scores and the hashes of the texts, not the texts themselves: the settings give them again.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from cutaway.app import protocol as p
from cutaway.app.endpoint import Endpoint
from cutaway.app.pages import own_pages
from cutaway.app.service import Job
from cutaway.charts import Chart, Series
from cutaway.errors import UsageError
from cutaway.ledger import Ledger, RunRecord
from cutaway.ledger.provenance import code_hash, machine, versions
from cutaway.ledger.records import new_id, now
from cutaway.sampling.kv import common_length
from cutaway.sampling.types import Cost
from cutaway.study import Finding, Findings

STUDY = "playground"


class Trial(p.Strict):
    """The settings of both columns."""

    prompt: Annotated[p.Text, Field(min_length=1)]
    chat: bool
    seed: Annotated[int, Field(ge=0, lt=2**53)]
    max_tokens: Annotated[int, Field(ge=1, le=1024)]
    temperature: Annotated[float, Field(ge=0, le=5)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    cutaway: p.Cutaway


class Saved(BaseModel):
    """Where the run is."""

    run: str
    url: str


def playground_router(endpoint: Endpoint, ledger: Ledger) -> APIRouter:
    """The page, and the way to keep what it shows."""
    router = APIRouter()

    @router.get("/playground", include_in_schema=False)
    def page(request: Request) -> HTMLResponse:
        chat = getattr(endpoint.model.tokenizer, "chat_template", None) is not None
        return own_pages().page(request, "playground.html.j2", model=endpoint.wishes.name, chat=chat)

    @router.post("/api/playground/runs", responses={400: {"model": p.ErrorAnswer}}, status_code=201)
    async def save(trial: Trial) -> Saved:
        """Run both columns and store the settings with the scores."""
        if not trial.cutaway.edits:
            raise UsageError("nothing is edited: both columns would be the same")
        started, clock = now(), time.monotonic()
        plain = await _column(endpoint, trial, steered=False)
        steered = await _column(endpoint, trial, steered=True)
        findings = compared(plain, steered)
        config = trial.model_dump(mode="json")
        run = RunRecord(
            id=new_id(STUDY, json.dumps(config)),
            study=STUDY,
            config=config,
            seed=trial.seed,
            started=started,
            seconds=time.monotonic() - clock,
            complete=True,
            summary=findings.summary,
            inputs={f"weights:{endpoint.model.name}": endpoint.model.fingerprint, **findings.inputs},
            code=code_hash(),
            versions=versions(),
            machine=machine(),
            cost=findings.cost,
        )
        ledger.add_run(run, findings)
        return Saved(run=run.id, url=f"/runs/{run.id}")

    return router


class Column(BaseModel):
    """One column, measured."""

    ids: list[int]
    scores: dict[str, list[float | None]]
    edits: list[str]
    prompt_tokens: int


async def _column(endpoint: Endpoint, trial: Trial, *, steered: bool) -> Column:
    asked = _request(endpoint, trial, steered)
    jobs: Sequence[Job] = await endpoint.jobs(asked)
    (choice,) = endpoint.choices(asked, jobs)
    async with aclosing(endpoint.pieces(jobs)) as pieces:
        async for piece in pieces:
            choice.take(piece)
    return Column(
        ids=choice.ids,
        scores={m.name: [each[m.name] for each in choice.scores] for m in jobs[0].monitors},
        edits=[edit.digest for edit in jobs[0].edits],
        prompt_tokens=len(jobs[0].prefix),
    )


def _request(endpoint: Endpoint, trial: Trial, steered: bool) -> p.CompletionRequest | p.ChatRequest:
    field = trial.cutaway if steered else trial.cutaway.model_copy(update={"edits": []})
    same: dict[str, Any] = {
        "model": endpoint.wishes.name,
        **trial.model_dump(include={"seed", "max_tokens", "temperature", "top_p"}),
        "cutaway": field,
    }
    if trial.chat:
        return p.ChatRequest(**same, messages=[p.Message(role="user", content=trial.prompt)])
    return p.CompletionRequest(**same, prompt=trial.prompt)


def compared(plain: Column, steered: Column) -> Findings:
    """What the two columns say: mean scores of one text each, so without an interval."""
    items = []
    for name in steered.scores:
        control = _mean(f"{name}: mean score, plain", plain.scores[name])
        items.append(replace(_mean(f"{name}: mean score, steered", steered.scores[name]), control=control))
    shared = common_length(plain.ids, steered.ids)
    items.append(Finding("tokens before the texts part", float(shared), n=len(steered.ids), unit="tokens"))
    longest = max(len(plain.ids), len(steered.ids))
    charts = tuple(
        Chart(
            f"{name}, token by token",
            tuple(float(i + 1) for i in range(longest)),
            (
                Series("steered", _padded(steered.scores[name], longest)),
                Series("plain", _padded(plain.scores[name], longest), control=True),
            ),
            x_label="token",
            y_label="score",
            note="One text each, from the same seed.",
        )
        for name in steered.scores
    )
    texts = {"plain": _hash(plain.ids), "steered": _hash(steered.ids)}
    about = {"texts": texts, "edits": steered.edits, "tokens": {"plain": len(plain.ids), "steered": len(steered.ids)}}
    where = "nowhere" if plain.ids == steered.ids else f"after {shared} tokens"
    return Findings(
        tuple(items),
        f"one prompt, plain and under {len(steered.edits)} edit(s): the texts part {where}",
        {"playground.json": (json.dumps(about, indent=1) + "\n").encode()},
        {"data:edits": hashlib.sha256("".join(steered.edits).encode()).hexdigest()},
        Cost(len(plain.ids) + len(steered.ids), plain.prompt_tokens + steered.prompt_tokens),
        charts=charts,
    )


def _mean(name: str, scores: Sequence[float | None]) -> Finding:
    known = [score for score in scores if score is not None]
    if not known:
        return Finding(name, None, undefined="no token has a finite score")
    return Finding(name, statistics.fmean(known), n=len(known))


def _padded(scores: Sequence[float | None], length: int) -> tuple[float | None, ...]:
    return (*scores, *[None] * (length - len(scores)))


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
