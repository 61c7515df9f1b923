"""Type hints counted by Python's own parser, and small functions run without running any code.

`count_hints` reads every function in a text (async, nested, methods): a slot is each parameter and the return; the
first parameter of a method, ``self`` or ``cls``, has none to fill. Lambdas take no hints and are no functions here.
`outcome` works a function out by walking its syntax tree (arithmetic, comparisons, a few builtins), so what a model
wrote is never executed.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: Mapping[str, Callable[..., Any]] = {"abs": abs, "max": max, "min": min, "len": len, "sum": sum, "round": round}


class _Unknown(Exception):  # noqa: N818  it is no error: the function is beyond what is worked out here
    """A piece of syntax that is not worked out."""


@dataclass(frozen=True)
class Hints:
    """Functions in a text and their hints."""

    functions: int
    annotated: int
    """Functions with a hint in at least one slot."""
    slots: int
    filled: int
    parsed: bool
    """False where no part of the text from its start parses as Python with a function in it."""


def code_of(text: str) -> str:
    """The first fenced block of a text, else the text."""
    found = _FENCE.search(text)
    return found.group(1) if found else text


def parse_functions(text: str) -> list[Function]:
    """Functions in the longest run of whole lines, from the start of the code, that parses; empty for none."""
    lines = code_of(text).splitlines()
    for end in range(len(lines), 0, -1):
        try:
            tree = ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError):
            continue
        return [node for node in ast.walk(tree) if isinstance(node, Function)]
    return []


def count_hints(text: str) -> Hints:
    """Count functions and hints in ``text``."""
    functions = parse_functions(text)
    slots = [_slots(function) for function in functions]
    annotated = sum(any(each) for each in slots)
    return Hints(len(functions), annotated, sum(map(len, slots)), sum(map(sum, slots)), bool(functions))


def outcome(function: Function, values: Sequence[Any]) -> Any:
    """What ``function`` returns for ``values``; None where its body is beyond assignments, ifs and expressions."""
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    if len(names) != len(values):
        return None
    try:
        return _body(function.body, dict(zip(names, values, strict=True)))
    except (_Unknown, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _slots(function: Function) -> list[bool]:
    args = function.args
    plain = [*args.posonlyargs, *args.args]
    if plain and plain[0].arg in ("self", "cls"):
        plain = plain[1:]
    every = [*plain, *args.kwonlyargs, *(each for each in (args.vararg, args.kwarg) if each is not None)]
    return [each.annotation is not None for each in every] + [function.returns is not None]


def _body(body: Sequence[ast.stmt], known: dict[str, Any]) -> Any:
    for statement in body:
        if isinstance(statement, ast.Return) and statement.value is not None:
            return _value(statement.value, known)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            known[statement.targets[0].id] = _value(statement.value, known)
        elif isinstance(statement, ast.If):
            found = _body(statement.body if _value(statement.test, known) else statement.orelse, known)
            if found is not None:
                return found
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            raise _Unknown
    return None


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:  # noqa: PLR0911  one return a kind of node
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, known)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, known), _value(node.right, known))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        return _COMPARE[type(node.ops[0])](_value(node.left, known), _value(node.comparators[0], known))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS and not node.keywords:
        return _CALLS[node.func.id](*(_value(each, known) for each in node.args))
    if isinstance(node, ast.IfExp):
        return _value(node.body if _value(node.test, known) else node.orelse, known)
    raise _Unknown
