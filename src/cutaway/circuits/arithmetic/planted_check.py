"""Role search run on a planted adder, in the terms of the adder's own truth."""

from cutaway.circuits.arithmetic.ablate import ablate
from cutaway.circuits.arithmetic.classes import per_class
from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.interchange import Task
from cutaway.circuits.arithmetic.nodes import Node, all_nodes
from cutaway.circuits.arithmetic.questions import join
from cutaway.circuits.arithmetic.roles import Roles, Tag, find_roles, mean_attention, tasks
from cutaway.planted.adder import Adder

Place = tuple[int, int, int]
Job = tuple[str, int, int]


def planted_roles(planted: Adder, *, layers_all: bool = False, pairs: int = 100, seed: int = 0) -> Roles:
    """Roles found on a planted adder; ``layers_all`` tests every node at the answer, useful or not."""
    form = Format((planted.model.n_ctx - 3) // 3, signed=planted.model.vocab_size == 15)
    varied, reference = (join(list(per_class(form, 60, seed + at).values())) for at in (1, 50))
    nodes = all_nodes(planted.model, form)
    if layers_all:
        useful = tuple(node for node in nodes if node.position is not None and node.position >= form.equals)
    else:
        useful = ablate(planted.model, varied, nodes, reference).useful()
    attention = mean_attention(planted.model, varied)
    return find_roles(planted.model, form, useful, tasks(form), pairs=pairs, seed=seed, attention=attention)


def found_roles(roles: Roles) -> dict[Place, Job]:
    """Single-head tags; weak ones and those of all digits at once left out."""
    return {_place(tag.nodes[0]): _job(tag.task) for tag in _kept(roles, 1)}


def found_pairs(roles: Roles) -> dict[tuple[Place, ...], Job]:
    """Tags of two heads that share a job."""
    return {tuple(_place(node) for node in tag.nodes): _job(tag.task) for tag in _kept(roles, 2)}


def _kept(roles: Roles, heads: int) -> list[Tag]:
    tags = [tag for tag in roles.tags if tag.strength != "weak" and tag.task.digit is not None]
    return [tag for tag in tags if len(tag.nodes) == heads]


def _place(node: Node) -> Place:
    assert node.position is not None
    assert node.layer is not None
    assert node.head is not None
    return (node.position, node.layer, node.head)


def _job(task: Task) -> Job:
    assert task.digit is not None
    return (task.name, task.column, task.digit)
