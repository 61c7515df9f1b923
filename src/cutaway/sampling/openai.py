"""Rollouts from a server that speaks the OpenAI API: vLLM first, then anything with ``/v1/completions``.

Prompts go out as token ids, one request a seed (vLLM's CPU engine dies on a seed together with ``n`` > 1, and
its prefix cache makes single requests share the prompt anyway). Token ids come back from the server where it
gives them (vLLM's ``return_token_ids``); otherwise the text is tokenised again and `OpenAIEngine.exact_ids`
turns False.

What a server cannot do is said, not imitated:

- **Edits** are refused: the weights are out of reach.
- **``ban_first``** is a rejection loop: draw the first token (a request for one token), draw again under a
  derived seed while it is the banned one, then draw the whole row under the accepted seed. What is kept is
  exactly a draw conditional on not starting with the token, after temperature, top-k and top-p.
  ``logit_bias`` would be cheaper, but it bans the token at every position and moves the nucleus. Every
  rejected token counts in the cost.
- **Log-probs** are the server's. vLLM's default gives those of the model at temperature 1, as `Rollout`
  wants; one started with ``--logprobs-mode processed_logprobs`` does not. What is not given is NaN.
- **Cost** is the server's count. vLLM tells cached prompt tokens only when it was started with
  ``--enable-prompt-tokens-details``; without, they count as prefilled.
- **A seed** fixes a row as far as the server does: batched arithmetic may flip a near tie. Store the ids.
- **Text without ids**: the end token is added back where it must have been; special tokens inside a row and a
  stop string that the server cut off are not.
"""

import asyncio
import contextlib
import functools
import hashlib
import math
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.sampling.types import Cost, Request, Rollout, Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError
    from transformers import PreTrainedTokenizerBase

    from cutaway.model import Edit

T = TypeVar("T")
Shape = TypeVar("Shape", bound=BaseModel)
Job = Callable[["AsyncOpenAI"], Awaitable[T]]


class _Card(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Card] = Field(min_length=1)


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]


class _Choice(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=1)
    usage: _Usage


class OpenAIEngine:
    """Samples from the model ``model`` of the server at ``base_url``; see `cutaway.sampling.types.Engine`.

    The key comes from ``api_key`` or the variable OPENAI_API_KEY and is sent to that server alone.
    Raises `UsageError` for an unknown model, `CutawayError` for a server that does not answer.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        time_limit: float = 600.0,
        retries: int = 5,
        ban_tries: int = 256,
    ) -> None:
        """Ask the server for its models and choose ``model`` (the only one when None).

        ``tokenizer`` is needed only where the server gives no token ids. ``concurrency``: requests at once.
        ``time_limit``: seconds for one request, its retries included. ``retries``: how often a 429, a 5xx or
        a lost connection is tried again, with exponential backoff and jitter. ``ban_tries``: first tokens
        drawn for one row under ``ban_first`` before giving up.
        """
        try:
            import openai  # noqa: F401
        except ImportError:
            raise CutawayError("OpenAIEngine needs the openai client: pip install 'cutaway[scale]'") from None
        for name, value in (("concurrency", concurrency), ("ban_tries", ban_tries)):
            if value < 1:
                raise UsageError(f"{name}={value}: must be at least 1")
        if not time_limit > 0 or retries < 0:
            raise UsageError(f"time_limit={time_limit}, retries={retries}: must be > 0 and >= 0")
        self.base_url = _checked_url(base_url)
        self.tokenizer = tokenizer
        self.concurrency = concurrency
        self.time_limit = time_limit
        self.retries = retries
        self.ban_tries = ban_tries
        self.cost = Cost()
        self.exact_ids = True
        """Whether all ids so far are the server's own; False once a text had to be tokenised again."""
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        self._extras = True  # vLLM's own fields, until the server refuses them
        self.model = self._served(model)
        self.identity = f"openai:{self.model}"

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.base_url!r}, {self.model!r})"

    def stream(self, requests: Sequence[Request], edits: "Sequence[Edit]" = ()) -> Iterator[tuple[int, Rollout]]:
        """Yield ``(request index, rollout)`` as the server answers; closing it cancels the rest.

        After a failure the rows that are done are still yielded; then the first error is raised.
        """
        if edits:
            raise UsageError(f"{len(edits)} edit(s) given, but a server cannot edit its model; use LocalEngine")
        for request in requests:
            self._check(request.prefix)
        rows = [(index, seed) for index, request in enumerate(requests) for seed in request.seeds]
        jobs = [functools.partial(self._rollout, requests[index], seed) for index, seed in rows]
        return ((rows[at][0], rollout) for at, rollout in self._each(jobs))

    def token_probs(self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings) -> list[float] | None:
        """Probability that ``settings`` draw each token of ``continuation``; None if unknown.

        Known only when nothing is filtered or rescaled (temperature 1, top_p 1, top_k 0) and the server
        echoes a prompt's log-probs.
        """
        self._check(prefix)
        self._check(continuation or prefix)
        if (settings.temperature, settings.top_p, settings.top_k) != (1, 1, 0):
            return None
        ids = [*prefix, *continuation]
        body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 1.0}
        try:
            answer = next(self._each([lambda client: self._complete(client, body)]))[1]
        except UsageError:  # the server refuses to echo
            return None
        logprobs = answer.choices[0].logprobs
        found = logprobs.token_logprobs[len(prefix) : len(ids)] if logprobs else []
        known = [math.exp(x) for x in found if x is not None]
        return known if len(known) == len(continuation) else None

    def _check(self, prefix: Sequence[int]) -> None:
        if not prefix:
            raise UsageError("the prefix is empty: give at least one token (a BOS token or a prompt)")
        worst = min(prefix) if min(prefix) < 0 else max(prefix)
        if worst < 0 or (self.tokenizer is not None and worst >= len(self.tokenizer)):
            raise UsageError(
                f"token id {worst} is not in the vocabulary of {self.model}; was the text made for another?"
            )

    def _served(self, wanted: str | None) -> str:
        async def ask(client: "AsyncOpenAI") -> _Models:
            hasty = client.with_options(max_retries=min(1, self.retries))
            return await self._ask(hasty.models.with_raw_response.list, _Models)

        names = [card.id for card in next(self._each([ask]))[1].data]
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in names:
            return wanted
        raise UsageError(f"{self.base_url} does not serve model {wanted!r}{nearest(str(wanted), names)}")

    async def _rollout(self, request: Request, seed: int, client: "AsyncOpenAI") -> Rollout:
        settings, ban = request.settings, request.ban_first
        if ban is None:
            return await self._draw(client, request.prefix, seed, settings)
        # Greedy draws are all the same one.
        tries = self.ban_tries if settings.temperature else 1
        for attempt in range(tries):
            trial = _derived(seed, attempt)
            row = await self._draw(client, request.prefix, trial, replace(settings, max_tokens=1))
            if not self.exact_ids:
                raise UsageError(f"ban_first={ban}: {self.base_url} gives no token ids to compare with")
            if row.ids[:1] != (ban,) and row.finish == "length" and settings.max_tokens > 1:
                row = await self._draw(client, request.prefix, trial, settings)
            if row.ids[:1] != (ban,):
                return replace(row, seed=seed)
        raise CutawayError(
            f"ban_first={ban}: {tries} draws of seed {seed} all began with this token under {settings}; "
            "leave this prefix out or raise ban_tries"
        )

    async def _draw(self, client: "AsyncOpenAI", prefix: Sequence[int], seed: int, settings: Settings) -> Rollout:
        body: dict[str, Any] = {
            "prompt": list(prefix),
            "seed": seed,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "logprobs": 1,
        }
        if settings.stop:
            body["stop"] = list(settings.stop)
        fixed = {"top_k": settings.top_k} if settings.top_k else {}
        extras = {
            "return_token_ids": True,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }
        if self._extras:
            try:
                answer = await self._complete(client, {**body, "extra_body": {**fixed, **extras}})
            except UsageError as error:
                if not any(name in str(error) for name in extras):
                    raise
                self._extras = False
        if not self._extras:
            answer = await self._complete(client, {**body, "extra_body": fixed})
        ids, logprobs = self._tokens(answer.choices[0], settings)
        if len(ids) > settings.max_tokens:
            raise CutawayError(f"{self.base_url} gave {len(ids)} tokens for max_tokens={settings.max_tokens}")
        return Rollout(seed, ids, logprobs, answer.choices[0].finish_reason)

    def _tokens(self, choice: _Choice, settings: Settings) -> tuple[tuple[int, ...], tuple[float, ...]]:
        given = choice.logprobs.token_logprobs if choice.logprobs else []
        ids = choice.token_ids
        if ids is None:
            if self.tokenizer is None:
                raise CutawayError(f"{self.base_url} gives no token ids; pass the model's tokenizer")
            self.exact_ids = False
            ids = list(self.tokenizer(choice.text, add_special_tokens=False)["input_ids"])
            eos = self.tokenizer.eos_token_id
            # The text does not show the end token; a stop that no string explains was one.
            if choice.finish_reason == "stop" and not settings.stop and eos is not None and ids[-1:] != [eos]:
                ids.append(eos)
        if len(given) != len(ids):
            given = [None] * len(ids)
        # Rounding puts a certain token's log-prob a hair above 0.
        return tuple(ids), tuple(math.nan if x is None else min(x, 0.0) for x in given)

    async def _complete(self, client: "AsyncOpenAI", body: dict[str, Any]) -> _Completion:
        create = client.completions.with_raw_response.create
        answer = await self._ask(lambda: create(model=self.model, **body), _Completion)
        details = answer.usage.prompt_tokens_details
        cached = (details.cached_tokens if details else None) or 0
        fresh = answer.usage.prompt_tokens - cached
        self.cost += Cost(decoded=answer.usage.completion_tokens, prefilled=fresh, reused=cached)
        return answer

    async def _ask(self, call: Callable[[], Awaitable[Any]], shape: type[Shape]) -> Shape:
        """One request, its retries left to the client; every way to fail becomes one line."""
        import openai

        try:
            async with asyncio.timeout(self.time_limit):
                text = (await call()).text
        except (TimeoutError, openai.APITimeoutError):
            raise CutawayError(
                f"{self.base_url} gave no answer within {self.time_limit:g} s; is it overloaded? lower "
                "concurrency or max_tokens, or raise time_limit"
            ) from None
        except openai.OpenAIError as error:
            raise self._failure(error) from None  # its own text may repeat the key
        try:
            return shape.model_validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise CutawayError(
                f"{self.base_url} did not answer as the OpenAI API does ({where}: {first['msg']}; the answer "
                f"begins {self._line(text, 60)!r}); check the address and the server's log"
            ) from None

    def _failure(self, error: "OpenAIError") -> CutawayError:
        import openai

        if not isinstance(error, openai.APIStatusError):
            reason = self._line(error.__cause__ or error)
            return CutawayError(
                f"{self.base_url} cannot be reached or broke off ({reason}); is the server running there?"
            )
        body = error.body if isinstance(error.body, dict) else {}
        said = self._line(body.get("message") or error.message)
        status = error.status_code
        if status in (401, 403):
            return CutawayError(f"{self.base_url} refused the key ({status}: {said}); set OPENAI_API_KEY")
        if status == 429 or status >= 500:
            return CutawayError(
                f"{self.base_url} still answers {status} after {self.retries} retries ({said}); lower "
                "concurrency or try later: rollouts in a tree are kept"
            )
        return UsageError(f"{self.base_url} refused the request ({status}: {said})")

    def _line(self, text: object, limit: int = 200) -> str:
        shown = str(text).replace(self._key, "<key>") if self._key else str(text)
        return " ".join(shown.split())[:limit]

    def _each(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        """Run ``jobs``, `concurrency` at a time; yield ``(index, result)`` as they finish.

        The requests live in an event loop in a thread of its own: a caller inside a notebook's loop, Ctrl-C
        and an iterator that is dropped half-way all work, and a cancelled request leaves the server free.
        """
        from openai import AsyncOpenAI

        failed: BaseException | None = None
        with _loop_in_thread() as loop:
            gate = asyncio.Semaphore(self.concurrency)
            client = AsyncOpenAI(
                base_url=self.base_url,
                api_key=self._key or "none",
                max_retries=self.retries,
                timeout=self.time_limit,
            )

            async def gated(job: Job[T]) -> T:
                async with gate:
                    return await job(client)

            places: dict[Future[T], int] = {
                asyncio.run_coroutine_threadsafe(gated(job), loop): at for at, job in enumerate(jobs)
            }
            try:
                for future in as_completed(places):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        yield places[future], future.result()
                    elif failed is None:
                        failed = error
                        for other in places:
                            other.cancel()
            finally:
                for future in places:
                    future.cancel()
                if not sys.is_finalizing():  # then the loop's thread is dead already
                    asyncio.run_coroutine_threadsafe(client.close(), loop).result()
        if failed is not None:
            raise failed


@contextlib.contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a daemon thread; at the end its tasks are cancelled and it is closed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="cutaway-openai")
    thread.start()

    async def wind_up() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield loop
    finally:
        if not sys.is_finalizing():
            asyncio.run_coroutine_threadsafe(wind_up(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"base_url={base_url!r}: must look like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise UsageError("base_url holds a user name or password; give the key in OPENAI_API_KEY instead")
    return base_url.rstrip("/") if parts.path.strip("/") else f"{base_url.rstrip('/')}/v1"


def _derived(seed: int, attempt: int) -> int:
    """The seed of a row's n-th try: its own first, then 31 bits that depend on both."""
    if attempt == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:4]) >> 1
