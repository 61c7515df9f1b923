"""What the JSON API answers, field by field: the published OpenAPI document is made from this."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """An answer: no field but those named here."""

    model_config = ConfigDict(extra="forbid")


class Provenance(Body):
    """What the numbers rest on."""

    model: str
    fingerprint: str = Field(description="SHA-256 of the model's weights; empty where features were imported.")
    corpus: str
    corpus_digest: str
    tokens: int
    texts: int
    complete: bool = Field(description="False while the filling is not done; numbers are of the tokens so far.")


class SourceSummary(Body):
    """A layer's neurons or a dictionary's latents."""

    source: str
    title: str
    kind: str
    site: str
    units: int
    silent: int = Field(description="Units that are never above zero.")
    median_density: float


class Models(Body):
    """The models there are: one for each index."""

    models: list[Provenance]


class Overview(Body):
    """A model's sources and what can be asked of a unit."""

    data: list[SourceSummary]
    services: list[str]
    live: bool = Field(description="Whether texts can be tried.")
    metadata: Provenance


class Brief(Body):
    """One line about a unit."""

    source: str
    unit: int
    strongest: float
    density: float = Field(description="Share of tokens where it is above zero.")
    tokens: list[str] = Field(description="What it is strongest on.")


class Listing(Body):
    """Units of a source in an order."""

    data: list[Brief]
    total: int
    offset: int
    metadata: Provenance


class Near(Body):
    """A token that differs in case or blanks from one asked for that does not exist."""

    token: str
    id: int


class Found(Body):
    """Units that satisfy every term."""

    data: list[Brief]
    total: int
    offset: int
    near: list[Near]
    metadata: Provenance


class TextBody(Body):
    """The part of a text around a peak."""

    tokens: list[str]
    values: list[float | None] = Field(description="None at special tokens, which are not counted.")
    at: int = Field(description="Which token is the peak.")
    peak: float
    document: int
    offset: int = Field(description="Of the first token, counted in the document.")


class UnitMetadata(Body):
    """Where a unit is and how strong."""

    source: str
    unit: int
    title: str
    kind: str
    site: str
    strongest: float
    density: float


class Histogram(Body):
    """Tokens by value: bars between powers of two, each octave cut in half."""

    values: list[float] = Field(description="End of each bar that is nearer to zero; 0 is the bar around zero.")
    heights: list[float]


class Effect(Body):
    """A token and how much the unit adds to its logit, but for one positive scale."""

    token: str
    value: float


class Logits(Body):
    """Tokens raised and lowered most."""

    promoted: list[Effect]
    suppressed: list[Effect]


class TokenCount(Body):
    """A token in the top texts."""

    token: str
    value: float = Field(description="The largest on this token.")
    count: int


class Similar(Body):
    """Another unit, by the activating tokens both have."""

    source: str
    unit: int
    similarity: float = Field(description="Shared tokens over the tokens of either.")
    inside: float = Field(description="Share of this unit's tokens that the other has.")
    holds: float = Field(description="Share of the other's tokens that this unit has; 1: the other is a subset.")
    shared: int


class UnitData(Body):
    """Services of a unit; one that was not asked for or has no data is left out."""

    metadata: UnitMetadata | None = None
    texts: list[TextBody] | None = None
    samples: list[TextBody] | None = None
    tokens: list[TokenCount] | None = None
    histogram: Histogram | None = None
    logits: Logits | None = None
    graph: dict[str, Any] | None = None
    similar: list[Similar] | None = None
    explanations: list[dict[str, Any]] | None = None
    extra: dict[str, Any] | None = None


class UnitBody(Body):
    """Everything asked about one unit."""

    data: UnitData
    missing_data_types: list[str] = Field(description="Services that were asked for and have no data.")
    metadata: Provenance


class Tried(Body):
    """A unit on a text of the user's."""

    tokens: list[str]
    values: list[float | None]
    strongest: float = Field(description="The unit's largest value in the corpus.")
    same_weights: bool = Field(description="Whether the model at hand is bit for bit the indexed one.")


class Firing(Body):
    """A unit that fires on a text."""

    source: str
    unit: int
    value: float
    share: float = Field(description="Of the unit's largest value in the corpus.")
    at: int = Field(description="Which token.")


class Fired(Body):
    """Units that come closest to their largest value on a text."""

    tokens: list[str]
    units: list[Firing]
    same_weights: bool


class GivenText(Body):
    """A text to read."""

    text: str = Field(max_length=20_000)
    limit: int = Field(default=20, ge=1, le=200)


class ProblemBody(Body):
    """Why there is no answer."""

    message: str
    hint: str
    type: str
    param: str | None = None
    code: str | None = None


class Problem(Body):
    """An error."""

    error: ProblemBody
