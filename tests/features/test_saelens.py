"""SAELens itself, in an interpreter of its own, loads what is written here and computes the same."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cutaway.features import (
    Provenance,
    SparseDictionary,
    TrainConfig,
    load_dictionary,
    train_dictionary,
    write_dictionary,
)
from cutaway.features.formats import read_saelens

OTHER = os.environ.get("CUTAWAY_SAELENS", "")
PROGRAM = """
import sys, torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
root = sys.argv[1]
rows = load_file(root + "/rows.safetensors")["rows"]
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(root + "/" + name)
    with torch.no_grad():
        codes = sae.encode(rows)
        out = sae(rows)  # decode alone leaves out a skip connection
    save_file({"codes": codes.contiguous(), "out": out.contiguous()}, root + "/" + name + "/out.safetensors")
    sae.save_model(root + "/" + name + "/again")
"""
KINDS = {
    "topk": TrainConfig(n_latents=40, kind="topk", k=4, batch=64),
    "batchtopk": TrainConfig(n_latents=40, kind="batchtopk", k=4, batch=64),
    "relu": TrainConfig(n_latents=40, kind="relu", l1=0.5, batch=64),
    "jumprelu": TrainConfig(n_latents=40, kind="jumprelu", batch=64),
    "gated": TrainConfig(n_latents=40, kind="gated", l1=0.5, batch=64),
    "square": TrainConfig(n_latents=16, kind="topk", k=4, batch=64),
}


@pytest.mark.slow
def test_a_dictionary_trained_here_is_the_same_function_in_saelens(tmp_path: Path) -> None:
    """Starts another interpreter that imports SAELens."""
    if not OTHER:
        pytest.skip("CUTAWAY_SAELENS names no interpreter; set it to a Python that has sae-lens")
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(30, 16, generator=generator)
    rows = (torch.rand(640, 30, generator=generator) * (torch.rand(640, 30, generator=generator) < 0.15)) @ atoms + 2.0
    save_file({"rows": rows[:50].contiguous()}, tmp_path / "rows.safetensors")
    about = Provenance("smol", "f" * 64, "resid_post.15", data="d" * 64)
    made = {name: train_dictionary([rows], config, provenance=about).dictionary for name, config in KINDS.items()}
    pair = (rows, rows[:, :7] * 3)
    config = TrainConfig(n_latents=40, kind="relu", l1=0.5, batch=64, skip=True)
    to = Provenance("smol", site="resid_mid.3", target="mlp_out.3")
    made["transcoder"] = train_dictionary([pair], config, provenance=to).dictionary
    made["lengths"] = SparseDictionary(16, 40, "relu", normaliser="row_norm", seed=2).requires_grad_(False)
    made["layer norm"] = SparseDictionary(16, 40, "topk", k=4, normaliser="layer_norm", seed=2).requires_grad_(False)
    for name, each in made.items():
        write_dictionary(each, tmp_path / name, "saelens")
        each.save(tmp_path / name / "own")
    done = subprocess.run(
        [OTHER, "-W", "ignore", "-c", PROGRAM, str(tmp_path), *made], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in made:
        theirs, ours = load_file(tmp_path / name / "out.safetensors"), load_dictionary(tmp_path / name / "own")
        codes = ours.encode(rows[:50])
        assert (codes.l0 > 0).float().mean() > 0.5, name
        assert torch.allclose(codes.dense(), theirs["codes"], atol=1e-4), name
        assert torch.allclose(ours.decode(codes, rows[:50]), theirs["out"], atol=1e-4), name
        # What SAELens writes after loading it is read back as the same function.
        again = read_saelens(tmp_path / name / "again", fold=False)
        assert torch.allclose(again.encode(rows[:50]).dense(), theirs["codes"], atol=1e-4), name
