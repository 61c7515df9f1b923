"""Claims as data: three outcomes, and one block of weights decides between two of them."""

import pytest
import torch

from cutaway.circuits.arithmetic import Format
from cutaway.circuits.arithmetic.clauses import Clause, Fact, check
from cutaway.circuits.arithmetic.planted_check import planted_roles
from cutaway.errors import UsageError
from cutaway.planted.adder import Adder, adder

FACTS = [Fact("SA", 12, 0, 1, digit=4), Fact("SA", 13, 0, 1, digit=3), Fact("ST", 9, 0, 2)]


def outcomes(*clauses: Clause) -> list[str]:
    return [verdict.outcome for verdict in check(clauses, FACTS, {"SA", "ST"})]


def test_the_three_outcomes() -> None:
    assert outcomes(
        Clause("A4 has a base", "SA", digit=4),
        Clause("A2 has a base", "SA", digit=2),
        Clause("borrows", "MB"),
        Clause("no case is told late", "ST", first=10, least=0, most=0),
        Clause("no case is told early", "ST", last=10, least=0, most=0),
        Clause("bases lie in layer 0", "SA", layers=(0,), least=2, most=2),
        Clause("bases lie in layer 1", "SA", layers=(1,)),
    ) == ["valid", "invalid", "not testable", "valid", "invalid", "valid", "invalid"]


def test_a_verdict_says_why() -> None:
    (verdict,) = check([Clause("A2 has a base", "SA", digit=2)], FACTS, {"SA"})
    assert str(verdict) == "invalid: A2 has a base (found 0, wanted at least 1)"
    assert verdict.to_dict()["facts"] == 0
    with pytest.raises(UsageError, match="allows nothing"):
        Clause("nonsense", "SA", least=2, most=1)


def test_changing_one_block_of_weights_flips_the_clause() -> None:
    planted = adder(3)
    (((layer, head),), *_) = planted.truth.heads
    form = Format(3)

    def verdicts(which: Adder) -> list[str]:
        roles = planted_roles(which)
        facts = [
            Fact(t.task.name, t.nodes[0].position or 0, t.nodes[0].layer or 0, t.nodes[0].head, t.task.digit)
            for t in roles.tags
            if t.strength != "weak"
        ]
        claims = [Clause(f"A{i} has a base", "SA", digit=i, last=form.predicts(i)) for i in range(3)]
        return [verdict.outcome for verdict in check(claims, facts, {"SA"})]

    assert verdicts(planted) == ["valid"] * 3
    with torch.no_grad():
        at = slice(head * planted.model.d_head, (head + 1) * planted.model.d_head)
        planted.model.hf.transformer.h[layer].attn.c_proj.weight[at] = 0.0
    assert verdicts(planted) == ["invalid"] * 3
