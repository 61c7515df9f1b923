"""The method on planted domains, on coins, and on generated questions whose shortcuts are known."""

from collections.abc import Callable

import numpy as np
import torch

from cutaway.planted.answerable import TransferData, transfer_data
from cutaway.probes.sae_answerability.data import Item, celebrity_items, equation_items
from cutaway.probes.sae_answerability.method import plain_scores
from cutaway.probes.selection import Nested, codes_of, nested, screen, strongest
from cutaway.probes.transfer import Labelled, shortcuts_of, transfer
from cutaway.study import Rate

FAMILIES = ("mean difference", "1 latent", "worst domain")


def planted_sets(data: TransferData, rows: int = 600) -> list[Labelled]:
    """Every planted domain, with codes of the known atoms."""
    out = []
    for domain in range(data.domains):
        x, y = data.rows(domain, rows)
        codes = codes_of(torch.from_numpy(x @ data.atoms.T.astype(np.float32)))
        out.append(
            Labelled(f"domain {domain}", torch.from_numpy(x), y, tuple(f"{domain}-{i}" for i in range(rows)), codes)
        )
    return out


def ranks_and_flags(data: TransferData) -> bool:
    """Whether in every domain concept and shortcut are the two strongest latents, and are told apart by name."""
    sets, truth = planted_sets(data), data.truth
    for domain, home in enumerate(sets):
        assert home.codes is not None
        best = strongest(screen(home.codes, home.y), 2)
        verdicts = shortcuts_of(home, [each for each in sets if each is not home], best)
        wanted = {truth.concept: "transfers", truth.shortcuts[domain]: "shortcut"}
        if verdicts != wanted:
            return False
    return True


def loses_as_predicted(data: TransferData, within: float = 0.04) -> bool:
    """Whether the dense probe's mean AUROC at home and away is the theory's, and the chosen latent's the concept's."""
    found = transfer(planted_sets(data), FAMILIES, resamples=0)
    areas: dict[tuple[str, bool], list[float]] = {}
    for cell in found.cells:
        assert cell.area is not None
        areas.setdefault((cell.family, cell.home), []).append(cell.area.value)
    mean = {key: float(np.mean(values)) for key, values in areas.items()}
    truth = data.truth
    pairs = [
        (mean["mean difference", True], truth.dense_home),
        (mean["mean difference", False], truth.dense_away),
        (mean["worst domain", False], truth.concept_area),
    ]
    return all(abs(ours - theory) <= within for ours, theory in pairs)


def selection_on_coins(seed: int, rows: int = 400, latents: int = 300) -> Nested:
    """Nested and naive selection where there is nothing."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((rows, latents)) * (rng.random((rows, latents)) < 0.3)
    labels = rng.permutation(np.arange(rows) % 2 == 0)
    codes = codes_of(torch.from_numpy(dense).float())
    return nested(codes, labels, [str(i) for i in range(rows)], shuffles=3, seed=seed)


def leaks(items: list[Item]) -> float:
    """The best AUROC, either way, of shared words, length and words."""
    return max(max(area.value, 1 - area.value) for area in plain_scores(items, items).values())


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, over ``trials`` draws."""
    flagged = lost = invented = clean = 0
    honest: list[float] = []
    naive = 0
    for trial in range(trials):
        report(trial, trials)
        data = transfer_data(seed=trial)
        flagged += ranks_and_flags(data)
        lost += loses_as_predicted(data)
        empty = transfer(planted_sets(transfer_data(null=True, seed=trial), 300), ("mean difference",), resamples=2)
        invented += sum(cell.area is not None and cell.area.low > 0.5 for cell in empty.cells)
        coins = selection_on_coins(trial)
        honest.append(coins.honest)
        naive += coins.naive > 0.55
        clean += (
            leaks(equation_items(400, "matched", trial)) <= 0.58
            and leaks(celebrity_items(400, "matched", trial)) <= 0.58
        )
    fair = abs(float(np.mean(honest)) - 0.5) <= 0.02
    return (
        Rate("concept and shortcuts named", flagged, trials, at_least=0.95, what="planted domains, all of them right"),
        Rate("loss as predicted", lost, trials, at_least=0.95, what="dense probes that lose what theory says"),
        Rate("cells on coins above 0.5", invented, 9 * trials, at_most=0.08, what="intervals that claim transfer"),
        Rate("nested selection unbiased", int(fair), 1, at_least=1.0, what="mean over draws within 0.02 of 0.50"),
        Rate("naive selection biased", naive, trials, at_least=0.9, what="searches in coins that find 0.55 or more"),
        Rate(
            "matched sets without leak", clean, trials, at_least=0.9, what="draws with every shortcut at 0.58 or less"
        ),
    )
