"""What capturing costs: one forward with activations kept, against a bare forward of the same model.

Two fair baselines exist. Without logits a capture ends before the unembedding, so a bare forward of the decoder
alone (`backbone`) is its equal; with logits asked for, the whole model (`whole`) is. Both are reported.

    python benchmarks/capture.py [--quick] [--out FILE.json]
"""

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.model import Model, load_model
from cutaway.model.sites import END_KINDS, LAYER_KINDS

ROWS, COLUMNS = 4, 64


def sides(model: Model) -> dict[str, object]:
    """Everything that is timed; each takes the number of the repeat and does one forward."""
    rows = torch.randint(3, model.vocab_size, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))
    batch = model.batch(rows.tolist())
    given = batch.forward_kwargs()
    layered = [f"{kind}.*" for kind in LAYER_KINDS]
    asked = {
        "resid": ["resid_post.*"],
        "resid and logits": ["resid_post.*", "logits"],
        "all but logits": [*layered, "embed"],
        "all": [*layered, *END_KINDS],
    }
    bare = {
        "whole": lambda _: model.hf(**given, use_cache=False),
        "backbone": lambda _: model.hf.get_decoder()(**given, use_cache=False),
    }
    return bare | {name: lambda _, sites=sites: len(model.capture(batch, sites)) for name, sites in asked.items()}


@torch.inference_mode()
def main() -> None:
    given = options(__doc__)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    found = interleaved(2 if given.quick else 15, **sides(model))
    bars = {"resid": 1.05, "resid and logits": 1.05, "all but logits": 1.25, "all": 1.25}
    equals = {"resid": "backbone", "resid and logits": "whole", "all but logits": "backbone", "all": "whole"}
    claims = [
        claim(f"capture {name}, {clock}", f"bare {equals[name]}", ratios(found, name, equals[name], clock), bar=bar)
        for name, bar in bars.items()
        for clock in ("wall", "cpu")
    ]
    claims += [
        claim(f"capture {name}, {clock}", "bare whole", ratios(found, name, "whole", clock))
        for name in ("resid", "all but logits")
        for clock in ("wall", "cpu")
    ]
    seconds = {name: [each[:2] for each in runs] for name, runs in found.items()}
    kept = {name: runs[0].value for name, runs in found.items() if name in bars}
    report(given, claims, batch=[ROWS, COLUMNS], sites=kept, seconds=seconds)


if __name__ == "__main__":
    main()
