"""A validator for the part of JSON Schema that an OpenAPI document of FastAPI uses; it knows nothing else."""

from typing import Any

KNOWN = {
    *("$ref", "anyOf", "type", "items", "properties", "required", "additionalProperties", "enum", "const"),
    *("title", "description", "default", "examples", "minimum", "maximum", "maxLength"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def check(document: dict[str, Any], schema: dict[str, Any], value: Any, at: str = "$") -> None:
    """AssertionError where ``value`` is not what ``schema`` says."""
    assert set(schema) <= KNOWN, f"{at}: {set(schema) - KNOWN}"
    if "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return check(document, found, value, at)
    if "anyOf" in schema:
        errors = []
        for option in schema["anyOf"]:
            try:
                return check(document, option, value, at)
            except AssertionError as error:
                errors.append(str(error))
        raise AssertionError("; ".join(errors))
    if "enum" in schema:
        assert value in schema["enum"], at
    kind = schema.get("type")
    if kind is not None:
        assert isinstance(value, TYPES[kind]), f"{at}: {value!r} is no {kind}"
        assert kind == "boolean" or not isinstance(value, bool), f"{at}: {value!r} is no {kind}"
    if kind == "object":
        _object(document, schema, value, at)
    if kind == "array":
        for i, each in enumerate(value):
            check(document, schema.get("items", {}), each, f"{at}[{i}]")
    return None


def _object(document: dict[str, Any], schema: dict[str, Any], value: dict[str, Any], at: str) -> None:
    properties = schema.get("properties", {})
    missing = set(schema.get("required", ())) - set(value)
    assert not missing, f"{at}: no {missing}"
    for name, each in value.items():
        if name in properties:
            check(document, properties[name], each, f"{at}.{name}")
        else:
            rest = schema.get("additionalProperties", True)
            assert rest is not False, f"{at}: {name!r} is not in the schema"
            if isinstance(rest, dict):
                check(document, rest, each, f"{at}.{name}")
