"""The JSON API against its own OpenAPI document, and every kind of request that cannot be served."""

from typing import Any
from urllib.parse import quote, quote_from_bytes

import pytest
from fastapi.testclient import TestClient
from makers import ODD, SCRIPT, WORDS, tiny
from places import API, HOME
from schema_check import check

from cutaway.app.features import router
from cutaway.errors import CutawayError, UsageError
from cutaway.features.index import FeatureIndex, view
from cutaway.features.neuronpedia import record_of

EXAMPLES: dict[str, tuple[str, Any]] = {
    "get /api/features": ("/api/features", None),
    "get /api/features/{model}": (API, None),
    "get /api/features/{model}/search": (f"{API}/search?activating=the&any=a&ci=1&limit=5&layer=0", None),
    "post /api/features/{model}/fires": (f"{API}/fires", {"text": "the Paris"}),
    "get /api/features/{model}/units/{layer}": (f"{API}/units/odd?order=density", None),
    "post /api/features/{model}/try/{layer}/{unit}": (f"{API}/try/1/3", {"text": "the Paris"}),
    "get /api/features/{model}/neuronpedia/{layer}/{unit}": (f"{API}/neuronpedia/odd/0", None),
    "get /api/features/{model}/{service}/{layer}/{unit}": (f"{API}/all/0/0", None),
}


def ask(client: TestClient, how: str, address: str, body: Any) -> Any:
    return client.get(address) if how == "get" else client.post(address, json=body)


def test_every_documented_path_answers_as_documented(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    ours = {path: ways for path, ways in document["paths"].items() if path.startswith("/api/features")}
    paths = {f"{how} {path}" for path, ways in ours.items() for how in ways}
    assert paths == set(EXAMPLES)
    for name, (address, body) in EXAMPLES.items():
        how, path = name.split(" ")
        answer = ask(client, how, address, body)
        assert answer.status_code == 200, (name, answer.text)
        schema = document["paths"][path][how]["responses"]["200"]["content"]["application/json"]["schema"]
        check(document, schema, answer.json())


def test_every_service_of_every_unit_is_as_documented(client: TestClient, index: FeatureIndex) -> None:
    document = client.get("/openapi.json").json()
    ways = document["paths"]["/api/features/{model}/{service}/{layer}/{unit}"]["get"]
    schema = ways["responses"]["200"]["content"]["application/json"]["schema"]
    for service in view.SERVICES:
        for source in index.sources:
            answer = client.get(f"{API}/{service}/{source.name}/1").json()
            check(document, schema, answer)
            there = [name for name, value in answer["data"].items() if value is not None]
            assert there == ([] if answer["missing_data_types"] else [service])


BAD = [
    ("/api/features/nothing", 404, "GET /api/features"),
    (f"{API}x/all/0/0", 404, "GET /api/features"),
    (f"{API}/nothing/0/0", 404, "one of all, metadata"),
    (f"{API}/all/-1/0", 404, "lists layers"),
    (f"{API}/all/3/0", 404, "lists layers"),
    (f"{API}/all/od/0", 404, "lists layers"),
    (f"{API}/all/0/24", 404, "lists units"),
    (f"{API}/all/0/-1", 404, "lists units"),
    (f"{API}/all/0/x", 422, "openapi"),
    (f"{API}/all/0/1.5", 422, "openapi"),
    (f"{API}/units/9", 404, "lists layers"),
    (f"{API}/units/0?order=beauty", 422, "openapi"),
    (f"{API}/units/0?offset=-1", 422, "openapi"),
    (f"{API}/units/0?limit=9999", 422, "openapi"),
    (f"{API}/search", 422, "activating=TOKEN"),
    (f"{API}/search?activating=", 422, "activating=TOKEN"),
    (f"{API}/search?query=activating:the", 422, "activating=TOKEN"),
    (f"{API}/search?activating=a&ci=perhaps", 422, "openapi"),
    (f"{API}/search?activating=a&layer=77", 404, "lists layers"),
    (f"{API}/search?{'&'.join(['any=a'] * 17)}", 422, "activating=TOKEN"),
    (f"{API}/neuronpedia/0/99", 404, "lists units"),
]


@pytest.mark.parametrize(("address", "status", "hint"), BAD, ids=lambda each: str(each)[-40:])
def test_requests_that_cannot_be_served_say_why_and_what_to_do(
    client: TestClient, address: str, status: int, hint: str
) -> None:
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    check(client.get("/openapi.json").json(), {"$ref": "#/components/schemas/Problem"}, problem)
    assert problem["error"]["message"]
    assert hint in problem["error"]["hint"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"text": 3}', b'{"text": ""}', b'{"text": "<eos>"}', b"\xff"])
@pytest.mark.parametrize("address", [f"{API}/try/0/0", f"{API}/fires"])
def test_texts_that_cannot_be_read_are_422(client: TestClient, address: str, body: bytes) -> None:
    answer = client.post(address, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["hint"]


def test_hostile_queries_are_answered(client: TestClient) -> None:
    for token in ("' OR 1=1 --", "../../etc/passwd", "\x00", "%00", "a" * 5000, "{{7*7}}", SCRIPT, "𝕏" * 300):
        answer = client.get(f"{API}/search?any={quote(token, safe='')}")
        assert answer.status_code == 200, token
    for raw in ("%", "%zz", "%ff%fe", "%F0%9F", "+", "%25", "%26", "%3D"):
        answer = client.get(f"{API}/search?any={raw}")
        assert answer.status_code == 200, raw


def test_search_over_http_finds_every_token_in_its_role(client: TestClient, index: FeatureIndex) -> None:
    found = 0
    for word in WORDS:
        expected = [
            number
            for number in range(index.n_units)
            if word in {each["token"] for each in view.unit_view(index, number, ["tokens"])[0]["tokens"]}
        ]
        query = quote_from_bytes(word.encode(), safe="")
        rows = client.get(f"{API}/search?activating={query}&limit=500").json()["data"]
        numbers = [index.number(row["source"], row["unit"]) for row in rows]
        assert set(expected) <= set(numbers), word
        found += len(numbers)
    assert found > 50
    (only,) = client.get(f"{API}/search?activating={quote(ODD, safe='')}&layer=odd").json()["data"]
    assert (only["source"], only["unit"], only["tokens"]) == ("odd", 0, [ODD])


def test_a_byte_that_is_no_character_is_found(bare: TestClient) -> None:
    found = bare.get("/api/features/hand/search?any=%F0").json()
    assert found["total"] > 0
    assert any("\\xf0" in row["tokens"] for row in found["data"])
    assert bare.get("/api/features/hand/search?any=%5Cxf0").json()["total"] == 0


def test_what_the_index_has_not_is_named(bare: TestClient) -> None:
    answer = bare.get("/api/features/hand/all/dict/2").json()
    assert answer["missing_data_types"] == ["samples", "logits", "graph", "explanations", "extra"]
    assert bare.get("/api/features/hand/graph/dict/2").json()["missing_data_types"] == ["graph"]


def test_without_a_model_no_text_is_tried(bare: TestClient) -> None:
    for path in ("try/0/0", "fires"):
        answer = bare.post(f"/api/features/hand/{path}", json={"text": "a"})
        assert answer.status_code == 404
        assert "cutaway serve" in answer.json()["error"]["hint"]
    assert bare.get("/api/features/hand").json()["live"] is False


def test_the_unit_as_neuronpedia_stores_it(client: TestClient, index: FeatureIndex) -> None:
    record = record_of(client.get(f"{API}/neuronpedia/odd/0").json())
    assert record.index == 0
    assert record.density == index.density(index.number("odd", 0))
    assert all(ODD in example.tokens for example in record.examples)


def test_listings_are_ordered_and_paged(client: TestClient, index: FeatureIndex) -> None:
    for order, key in (("strength", "strongest"), ("density", "density"), ("number", "unit")):
        first = client.get(f"{API}/units/1?order={order}&limit=10").json()
        rest = client.get(f"{API}/units/1?order={order}&offset=10&limit=500").json()
        values = [row[key] for row in first["data"] + rest["data"]]
        assert values == sorted(values, reverse=order != "number")
        assert len(values) == first["total"] == index.source("1").units


def test_what_is_no_index_and_a_model_that_does_not_fit_are_refused(index: FeatureIndex, tmp_path: Any) -> None:
    with pytest.raises(CutawayError, match="no feature index"):
        router(tmp_path)
    with pytest.raises(UsageError, match="is not the model"):
        router(index, tiny(layers=1))
    assert HOME.endswith(index.model)
