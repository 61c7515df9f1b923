"""What clients send and get: the OpenAI protocol's shapes, and the ``cutaway`` field beside them.

A field that the protocol knows and this server cannot honour is accepted at the value that changes nothing, and
refused at any other; unknown fields are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1 << 20)]
Site = Annotated[str, Field(min_length=1, max_length=100, description="As in the docs: resid_post.12, z.3.5, ...")]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Vector = Annotated[list[Number], Field(min_length=1, max_length=1 << 17)]
Tensor = Annotated[
    Vector | Annotated[list[Vector], Field(min_length=1, max_length=4096)] | Name,
    Field(description="One value a dimension; one such list for each position; or the name of a registered vector."),
]
Index = Annotated[int, Field(ge=0, lt=1 << 31)]
Indices = Annotated[list[Index], Field(min_length=1, max_length=4096)]
Zero = Annotated[float, Field(ge=0, le=0, description="Not supported: 0 or left out.")]


class Strict(BaseModel):
    """Exact types, finite numbers, no fields beyond those named."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Span(Strict):
    """Positions from the first number up to the second, which is left out; null: to the end."""

    slice: Annotated[list[Index | None], Field(min_length=2, max_length=2)]


Positions = Index | Indices | Span | None


class AddSpec(Strict):
    """Add ``scale`` times ``vector``."""

    edit: Literal["Add"]
    site: Site
    vector: Tensor
    scale: Number = 1.0
    positions: Positions = None


class ProjectSpec(Strict):
    """Remove the span of ``directions``, or with ``keep`` everything else."""

    edit: Literal["Project"]
    site: Site
    directions: Tensor
    positions: Positions = None
    keep: bool = False


class ReplaceSpec(Strict):
    """Put ``value`` in place."""

    edit: Literal["Replace"]
    site: Site
    value: Tensor
    positions: Positions = None


class ScaleSpec(Strict):
    """Multiply by ``factor``."""

    edit: Literal["Scale"]
    site: Site
    factor: Number | Tensor
    positions: Positions = None


class MaskSpec(Strict):
    """Set to zero the whole site, or some of its heads or entries."""

    edit: Literal["Mask"]
    site: Site
    index: Index | Indices | None = None
    positions: Positions = None


class AttentionMaskSpec(Strict):
    """Hide ``keys`` from ``queries``."""

    edit: Literal["AttentionMask"]
    layer: Index | Literal["*"] = "*"
    queries: Positions = None
    keys: Positions = None
    heads: Index | Indices | None = None


class AttentionBiasSpec(AttentionMaskSpec):
    """Add ``bias`` to the attention logits of ``keys`` as seen from ``queries``."""

    edit: Literal["AttentionBias"]  # type: ignore[assignment]
    bias: Number


EditSpec = Annotated[
    AddSpec | ProjectSpec | ReplaceSpec | ScaleSpec | MaskSpec | AttentionMaskSpec | AttentionBiasSpec,
    Field(discriminator="edit"),
]


class MonitorSpec(Strict):
    """A linear probe: ``direction . activation + bias`` at ``site``."""

    name: Name
    site: Site
    direction: Vector | Name
    bias: Number = 0.0


class Cutaway(Strict):
    """What this server does beyond the protocol."""

    edits: Annotated[list[EditSpec | Name], Field(max_length=32)] = []
    """Edits, or names of registered ones; applied in this order, after those of the model's own name."""
    monitors: Annotated[list[MonitorSpec | Name], Field(max_length=64)] = []


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(Strict):
    """What both kinds of request have in common."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, StringConstraints(max_length=500)]
        | Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=500)]], Field(max_length=16)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Annotated[str, StringConstraints(max_length=1000)] | None = None
    return_token_ids: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    cutaway: Cutaway | None = None


class CompletionRequest(Sampling):
    """``POST /v1/completions``."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[Index], Field(min_length=1, max_length=1 << 20)]
        | Annotated[
            list[Annotated[list[Index], Field(min_length=1, max_length=1 << 20)]], Field(min_length=1, max_length=64)
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: None = None


class Part(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=1000)]
    name: Annotated[str, StringConstraints(max_length=200)] | None = None
    refusal: None = None
    audio: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Scored(BaseModel):
    """One choice's tokens with what the monitors said of them."""

    index: int
    ids: list[int]
    tokens: list[str]
    scores: dict[str, list[float | None]]
    """By monitor, one score a token; null where the number is not finite."""


class CutawayAnswer(BaseModel):
    edits: list[str]
    """SHA-256 of each edit in force."""
    scores: list[Scored]


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None = None
    token_ids: list[int] | None = None


class Completion(BaseModel):
    """A whole completion, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    cutaway: CutawayAnswer | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    cutaway: CutawayAnswer | None = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    cutaway: CutawayAnswer | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cutaway"
    edits: list[str]
    """What the model's answers are edited by, in words."""
    monitors: list[str]
    """Names of the registered monitors."""
    vectors: list[str]
    sites: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """What every refused request gets."""

    error: ErrorDetail
