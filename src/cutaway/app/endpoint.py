"""The OpenAI protocol over a `Service`: requests become jobs, pieces of rows become answers or events."""

import asyncio
import itertools
import json
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from jinja2 import TemplateError

from cutaway.app import protocol as p
from cutaway.app.guard import error_body
from cutaway.app.registry import Wishes
from cutaway.app.service import Job, Piece, Service
from cutaway.app.text import TextStream, token_text
from cutaway.errors import CutawayError, UsageError
from cutaway.sampling.types import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cutaway.model import Model

COMPLETION_TOKENS = 16
CHAT_TOKENS = 512
"""What an answer may have where the request does not say; less where the context ends before."""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": p.ErrorAnswer} for code in (400, 401, 403, 404, 408, 413, 421, 429, 500, 503)
}


class DisconnectedError(CutawayError):
    """Nobody is there any more to be answered."""

    status = 499


@dataclass
class _Choice:
    """One choice as far as it has come."""

    stream: TextStream | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    scores: list[dict[str, float | None]] = field(default_factory=list)
    text: str = ""
    finish: Any = None

    def take(self, piece: Piece) -> str:
        """Note a piece; return the text it adds."""
        self.ids += piece.ids
        self.logprobs += piece.logprobs
        self.tops += piece.tops
        self.scores += piece.scores
        self.finish = piece.finish
        assert self.stream is not None
        new = self.stream.add(piece.ids, last=piece.finish is not None)
        self.text += new
        return new


class Endpoint:
    """Answers requests to the model of ``service`` under the names and edits that ``wishes`` knows."""

    def __init__(self, service: Service, wishes: Wishes) -> None:
        self.service, self.wishes = service, wishes
        self.model: Model = service.model
        self.started = int(time.time())
        self.fingerprint = f"fp_{self.model.fingerprint[:12]}"
        # Tokenizers change their own settings while they encode; two threads at once would be refused.
        self._tokenizing = threading.Lock()

    def models(self) -> p.ModelList:
        """Every model that can be asked for, with what can be named in the ``cutaway`` field."""
        names = self.wishes.names
        sites = [f"resid_post.{layer}" for layer in range(self.model.n_layers)]
        registry = self.wishes.registry
        cards = [
            p.ModelCard(
                id=name,
                created=self.started,
                edits=[repr(edit) for edit in self.wishes.model_edits(name)],
                monitors=list(registry.monitors),
                vectors=list(registry.vectors),
                sites=sites,
            )
            for name in names
        ]
        return p.ModelList(data=cards)

    async def jobs(self, asked: p.CompletionRequest | p.ChatRequest) -> list[Job]:
        """One job for each prompt; UsageError for what cannot be served."""
        edits, monitors = self.wishes.edits(asked.model, asked.cutaway), self.wishes.monitors(asked.cutaway)
        prompts = await asyncio.to_thread(self._prompts, asked)
        limit, default = asked.max_tokens, COMPLETION_TOKENS
        top = asked.logprobs or 0
        if isinstance(asked, p.ChatRequest):
            limit = asked.max_completion_tokens or asked.max_tokens
            default = CHAT_TOKENS
            top = (asked.top_logprobs or 0) if asked.logprobs else 0
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        most = self.service.limits.rows + self.service.limits.waiting
        if len(prompts) * (asked.n or 1) > most:
            raise UsageError(f"{len(prompts)} prompts with n={asked.n or 1}: at most {most} choices a request")
        made = []
        for prompt in prompts:
            room = max(1, self.service.context - len(prompt))
            settings = Settings(
                temperature=1.0 if asked.temperature is None else float(asked.temperature),
                top_p=1.0 if asked.top_p is None else float(asked.top_p),
                top_k=asked.top_k or 0,
                max_tokens=limit or min(default, room),
                stop=tuple(mark for mark in stop if mark),
            )
            made.append(
                Job(
                    prefix=tuple(prompt),
                    choices=asked.n or 1,
                    settings=settings,
                    seed=seed,
                    tell=lambda _: None,
                    edits=edits,
                    monitors=monitors,
                    top=int(top),
                    live=bool(asked.stream),
                )
            )
        return made

    def _prompts(self, asked: p.CompletionRequest | p.ChatRequest) -> list[list[int]]:
        if isinstance(asked, p.ChatRequest):
            return [self._chat(asked.messages)]
        given: Any = asked.prompt
        several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        return [self._encode(each) if isinstance(each, str) else list(each) for each in several]

    def _encode(self, text: str) -> list[int]:
        if not text:
            start = getattr(self.model.tokenizer, "bos_token_id", None)
            if start is None:
                raise UsageError("the prompt is empty, and this model has no token to start from")
            return [int(start)]
        with self._tokenizing:
            return self.model.encode(text, special=True)

    def _chat(self, messages: Sequence[p.Message]) -> list[int]:
        tokenizer = self.model.tokenizer
        if tokenizer is None or tokenizer.chat_template is None:
            raise UsageError(f"model {self.model.name!r} has no chat template; use /v1/completions")
        turns = [
            {
                "role": "system" if each.role == "developer" else each.role,
                "content": each.content if isinstance(each.content, str) else "".join(x.text for x in each.content),
            }
            for each in messages
        ]
        try:
            with self._tokenizing:
                return list(
                    tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
                )
        except TemplateError as error:
            raise UsageError(f"the model's chat template refuses these messages: {error}") from None

    async def pieces(self, jobs: Sequence[Job]) -> AsyncGenerator[Piece, None]:
        """Pieces of all jobs as they come, choices numbered through; leaving early frees their rows."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | CutawayError]()
        submitted: list[Job] = []
        try:
            for at, job in enumerate(jobs):
                first = at * job.choices

                def tell(found: Piece | CutawayError, first: int = first) -> None:
                    if isinstance(found, Piece):
                        found = _renumbered(found, first)
                    loop.call_soon_threadsafe(queue.put_nowait, found)

                job.tell = tell
                self.service.submit(job)
                submitted.append(job)
            left = sum(job.choices for job in jobs)
            while left:
                found = await queue.get()
                if isinstance(found, CutawayError):
                    raise found
                left -= found.finish is not None
                yield found
        finally:
            for job in submitted:
                self.service.cancel(job)

    def choices(self, asked: p.CompletionRequest | p.ChatRequest, jobs: Sequence[Job]) -> list[_Choice]:
        """The choices of a request before their first piece."""
        keep_special = asked.skip_special_tokens is False
        keep_stop = bool(asked.include_stop_str_in_output)
        return [
            _Choice(TextStream(self.model, job.settings.stop, keep_special=keep_special, keep_stop=keep_stop))
            for job in jobs
            for _ in range(job.choices)
        ]

    async def whole(self, request: Request, asked: p.CompletionRequest | p.ChatRequest) -> Any:
        """The answer to a request that is not streamed; its rows are freed when the client goes away."""
        jobs = await self.jobs(asked)
        choices = self.choices(asked, jobs)

        async def work() -> None:
            async with aclosing(self.pieces(jobs)) as pieces:
                async for piece in pieces:
                    choices[piece.choice].take(piece)

        await _unless_gone(request, work())
        return self._answer(asked, jobs, choices)

    def _answer(
        self, asked: p.CompletionRequest | p.ChatRequest, jobs: Sequence[Job], choices: Sequence[_Choice]
    ) -> Any:
        made: dict[str, Any] = {
            **self._head(asked),
            "usage": _usage(jobs, choices),
            "cutaway": self._told(asked, jobs, dict(enumerate(choices))),
        }
        ids = bool(asked.return_token_ids)
        if isinstance(asked, p.ChatRequest):
            return p.ChatCompletion(
                **made,
                choices=[
                    p.ChatChoice(
                        index=i,
                        message=p.ChatMessage(content=each.text),
                        finish_reason=each.finish,
                        logprobs=self._chat_logprobs(asked, each),
                        token_ids=each.ids if ids else None,
                    )
                    for i, each in enumerate(choices)
                ],
            )
        return p.Completion(
            **made,
            choices=[
                p.CompletionChoice(
                    index=i,
                    text=each.text,
                    finish_reason=each.finish,
                    logprobs=self._logprobs(asked, each, 0),
                    token_ids=each.ids if ids else None,
                )
                for i, each in enumerate(choices)
            ],
        )

    async def streamed(self, asked: p.CompletionRequest | p.ChatRequest) -> StreamingResponse:
        """The answer as server-sent events. What can be refused is refused before the first."""
        jobs = await self.jobs(asked)
        pieces = self.pieces(jobs)
        first = await anext(pieces)  # refused jobs say so here, while there still is a status to say it with
        return StreamingResponse(self._events(asked, jobs, first, pieces), media_type="text/event-stream")

    async def _events(
        self,
        asked: p.CompletionRequest | p.ChatRequest,
        jobs: Sequence[Job],
        first: Piece,
        pieces: AsyncGenerator[Piece, None],
    ) -> AsyncIterator[str]:
        choices = self.choices(asked, jobs)
        head = self._head(asked)
        chat = isinstance(asked, p.ChatRequest)
        try:
            if chat:
                for i in range(len(choices)):
                    role = p.ChunkChoice(index=i, delta=p.Delta(role="assistant", content=""))
                    yield _event(p.ChatChunk(**head, choices=[role]))
            piece: Piece | None = first
            while piece is not None:
                choice = choices[piece.choice]
                start, text = len(choice.text), choice.take(piece)
                yield _event(self._chunk(asked, jobs, head, piece, text, start))
                piece = await anext(pieces, None)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                kind = p.ChatChunk if chat else p.Completion
                yield _event(kind(**head, choices=[], usage=_usage(jobs, choices)))
        except CutawayError as error:
            yield f"data: {json.dumps(error_body(getattr(error, 'status', 400), str(error)))}\n\n"
        finally:
            await pieces.aclose()
        yield "data: [DONE]\n\n"

    def _chunk(
        self,
        asked: p.CompletionRequest | p.ChatRequest,
        jobs: Sequence[Job],
        head: dict[str, Any],
        piece: Piece,
        text: str,
        start: int,
    ) -> "BaseModel":
        """One event: the text that ``piece`` made certain, which began at character ``start`` of the whole."""
        new = _Choice(None, list(piece.ids), list(piece.logprobs), list(piece.tops), list(piece.scores))
        told = self._told(asked, jobs, {piece.choice: new})
        ids = new.ids if asked.return_token_ids else None
        if isinstance(asked, p.ChatRequest):
            choice = p.ChunkChoice(
                index=piece.choice,
                delta=p.Delta(content=text),
                finish_reason=piece.finish,
                logprobs=self._chat_logprobs(asked, new),
                token_ids=ids,
            )
            return p.ChatChunk(**head, choices=[choice], cutaway=told)
        plain = p.CompletionChoice(
            index=piece.choice,
            text=text,
            finish_reason=piece.finish,
            logprobs=self._logprobs(asked, new, start),
            token_ids=ids,
        )
        return p.Completion(**head, choices=[plain], cutaway=told)

    def _head(self, asked: p.CompletionRequest | p.ChatRequest) -> dict[str, Any]:
        kind = "chatcmpl" if isinstance(asked, p.ChatRequest) else "cmpl"
        return {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": self.fingerprint,
        }

    def _told(
        self, asked: p.CompletionRequest | p.ChatRequest, jobs: Sequence[Job], choices: dict[int, _Choice]
    ) -> p.CutawayAnswer | None:
        edits, monitors = jobs[0].edits, jobs[0].monitors
        if asked.cutaway is None and not edits:
            return None
        scored = [
            p.Scored(
                index=i,
                ids=each.ids,
                tokens=[token_text(self.model, token) for token in each.ids],
                scores={m.name: [scores[m.name] for scores in each.scores] for m in monitors},
            )
            for i, each in choices.items()
            if monitors
        ]
        return p.CutawayAnswer(edits=[edit.digest for edit in edits], scores=scored)

    def _logprobs(
        self, asked: p.CompletionRequest | p.ChatRequest, choice: _Choice, start: int
    ) -> p.CompletionLogprobs | None:
        if asked.logprobs is None:
            return None
        tokens = [token_text(self.model, token) for token in choice.ids]
        offsets = list(itertools.accumulate((len(token) for token in tokens[:-1]), initial=start))[: len(tokens)]
        tops = [{token_text(self.model, token): logprob for token, logprob in place} for place in choice.tops]
        return p.CompletionLogprobs(
            tokens=tokens,
            token_logprobs=choice.logprobs,
            top_logprobs=tops if choice.tops else None,
            text_offset=offsets,
        )

    def _chat_logprobs(self, asked: p.ChatRequest, choice: _Choice) -> p.ChatLogprobs | None:
        if not asked.logprobs:
            return None
        tops = choice.tops or [()] * len(choice.ids)
        content = [
            p.TokenLogprob(**self._named(token, logprob), top_logprobs=[p.TopLogprob(**self._named(*x)) for x in place])
            for token, logprob, place in zip(choice.ids, choice.logprobs, tops, strict=True)
        ]
        return p.ChatLogprobs(content=content)

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self.model, token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}


def endpoint_router(endpoint: Endpoint) -> APIRouter:
    """``/v1``: models, completions, chat completions."""
    router = APIRouter(prefix="/v1", tags=["OpenAI protocol"], responses=PROBLEMS)
    events = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}

    @router.get("/models", response_model=p.ModelList)
    def models() -> Any:
        return endpoint.models()

    @router.get("/models/{name}", response_model=p.ModelCard)
    def model(name: str) -> Any:
        endpoint.wishes.model_edits(name)
        return next(card for card in endpoint.models().data if card.id == name)

    @router.post("/completions", response_model=p.Completion, responses=events)  # type: ignore[arg-type]
    async def completions(request: Request, asked: p.CompletionRequest) -> Any:
        return await (endpoint.streamed(asked) if asked.stream else endpoint.whole(request, asked))

    @router.post("/chat/completions", response_model=p.ChatCompletion, responses=events)  # type: ignore[arg-type]
    async def chat(request: Request, asked: p.ChatRequest) -> Any:
        return await (endpoint.streamed(asked) if asked.stream else endpoint.whole(request, asked))

    return router


async def _unless_gone(request: Request, work: Any) -> None:
    """Do ``work`` unless the client leaves first; DisconnectedError then."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DisconnectedError("the client went away")
        working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _renumbered(piece: Piece, first: int) -> Piece:
    return replace(piece, choice=first + piece.choice) if first else piece


def _usage(jobs: Sequence[Job], choices: Sequence[_Choice]) -> p.Usage:
    prompt, new = sum(len(job.prefix) for job in jobs), sum(len(each.ids) for each in choices)
    return p.Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


def _event(chunk: "BaseModel") -> str:
    return f"data: {chunk.model_dump_json()}\n\n"
