import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.in_context import in_context


def _prompt(planted, task: int, shots: tuple[int, ...], query: int) -> list[int]:
    pairs = planted.pairs(task)
    lines = "".join(f"{pairs[i][0]} -> {pairs[i][1]}\n" for i in shots)
    return planted.model.encode(f"Follow the pattern:\n{lines}{pairs[query][0]} ->")


@pytest.mark.parametrize("task", range(4))
def test_it_answers_known_tasks_from_one_example(task: int) -> None:
    planted = in_context(n_tasks=4, n_symbols=11, decoys=0, seed=task)
    for query in (3, 7):
        logits = planted.model.logits(planted.model.batch([_prompt(planted, task, (0, 5), query)]))[0, -1]
        assert planted.model.decode([int(logits.argmax())]) == f" {planted.pairs(task)[query][1]}"


def test_features_stand_where_the_truth_says() -> None:
    planted = in_context(n_tasks=4, n_symbols=11, decoys=6, seed=2)
    truth, k = planted.truth, 3
    batch = planted.model.batch([_prompt(planted, k, (0, 5), 7)])
    acts = planted.model.capture(batch, [truth.detect_at, truth.carry_at, truth.execute_at], special=True)
    output, arrow = 7, 14
    for site, position, latent in (
        (truth.detect_at, output, truth.detectors[k]),
        (truth.carry_at, arrow, truth.executors[k]),
        (truth.execute_at, arrow, truth.executors[k]),
    ):
        values = acts[site][0] @ planted.atoms.T
        assert float(values[position, latent]) == pytest.approx(1.0, abs=1e-4)
        others = [*truth.detectors, *truth.executors]
        others.remove(latent)
        if site != truth.execute_at:
            assert float(values[position, others].abs().max()) < 1e-4
    assert float((acts[truth.detect_at][0] @ planted.atoms[list(truth.executors)].T).abs().max()) < 1e-4


def test_unknown_tasks_and_the_null_model_say_nothing() -> None:
    known, null = in_context(3, 11, decoys=0), in_context(3, 11, decoys=0, null=True)
    for planted, task in ((known, 5), (null, 1)):
        logits = planted.model.logits(planted.model.batch([_prompt(planted, task, (0, 5), 7)]))[0, -1]
        best = logits.softmax(-1).topk(11).values
        assert float(best.max() - best.min()) < 1e-4
        assert float(best.sum()) == pytest.approx(1.0, abs=1e-3)


def test_atoms_are_orthonormal_and_decoys_are_not_theirs() -> None:
    planted = in_context(3, 11, decoys=8, seed=5)
    width = planted.model.d_model
    assert planted.atoms.shape == (width + 8, width)
    gram = planted.atoms[:width] @ planted.atoms[:width].T
    torch.testing.assert_close(gram, torch.eye(width), atol=1e-5, rtol=0)
    assert float((planted.atoms[width:] @ planted.atoms[list(planted.truth.executors)].T).max()) < 0.9


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"n_symbols": 1}, "n_symbols"),
        ({"n_symbols": 99}, "n_symbols"),
        ({"n_tasks": 24}, "n_tasks"),
        ({"decoys": -1}, "decoys"),
    ],
)
def test_bad_sizes_are_named(kwargs: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        in_context(**kwargs)
    with pytest.raises(UsageError, match="task="):
        in_context(2, 5, decoys=0).pairs(5)
