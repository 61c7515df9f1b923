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
MADE_THERE = """
import sys, torch, sae_lens
from pathlib import Path
from safetensors.torch import save_file
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
root = Path(sys.argv[1])
torch.manual_seed(0)
rows = torch.randn(50, 16) * 2 + 1
save_file({"rows": rows}, root / "rows.safetensors")

def save(name, sae, write):
    with torch.no_grad():
        for each in sae.parameters():
            each.copy_(torch.randn(each.shape) * 0.3)  # decoder rows of any length, thresholds of both signs
        if sae.cfg.architecture() == "batchtopk":
            sae.topk_threshold.fill_(0.4)
    write(root / name)
    sae = sae_lens.SAE.load_from_disk(root / name)
    with torch.no_grad():
        found = {"codes": sae.encode(rows).contiguous(), "out": sae(rows).contiguous()}
    save_file(found, root / name / "out.safetensors")

for name in ("standard", "gated", "topk", "jumprelu"):
    made, config = SAE_CLASS_REGISTRY[name]
    for how in ("none", "layer_norm", "constant_norm_rescale"):
        for inside in (True, False):
            more = {"k": 4, "rescale_acts_by_decoder_norm": inside} if name == "topk" else {}
            sae = made(config(16, 40, normalize_activations=how, apply_b_dec_to_input=inside, **more))
            save(f"{name}-{how}-{inside}", sae, sae.save_model)
for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
    made, config = SAE_CLASS_REGISTRY[name]
    sae = made(config(16, 40, d_out=7, apply_b_dec_to_input=False))
    save(name, sae, sae.save_model)
made, config = SAE_TRAINING_CLASS_REGISTRY["batchtopk"]
sae = made(config(16, 40, k=4))
save("batchtopk", sae, sae.save_inference_model)
"""
KINDS = {
    "topk": TrainConfig(n_latents=40, kind="topk", k=4, batch=64),
    "batchtopk": TrainConfig(n_latents=40, kind="batchtopk", k=4, batch=64),
    "relu": TrainConfig(n_latents=40, kind="relu", l1=0.5, batch=64),
    "jumprelu": TrainConfig(n_latents=40, kind="jumprelu", batch=64),
    "gated": TrainConfig(n_latents=40, kind="gated", l1=0.5, batch=64),
    "square": TrainConfig(n_latents=16, kind="topk", k=4, batch=64),
}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


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
        assert difference(codes.dense(), theirs["codes"]) < 1e-5, name
        assert difference(ours.decode(codes, rows[:50]), theirs["out"]) < 1e-5, name
        # What SAELens writes after loading it is read back as the same function.
        again = read_saelens(tmp_path / name / "again", fold=False)
        assert torch.allclose(again.encode(rows[:50]).dense(), theirs["codes"], atol=1e-4), name


@pytest.mark.slow
def test_a_dictionary_made_in_saelens_is_the_same_function_here(tmp_path: Path) -> None:
    """Starts another interpreter that imports SAELens."""
    if not OTHER:
        pytest.skip("CUTAWAY_SAELENS names no interpreter; set it to a Python that has sae-lens")
    done = subprocess.run(
        [OTHER, "-W", "ignore", "-c", MADE_THERE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = load_file(tmp_path / "rows.safetensors")["rows"]
    folders = sorted(path.parent for path in tmp_path.glob("*/out.safetensors"))
    assert len(folders) == 4 * 3 * 2 + 4 + 1
    for folder in folders:
        theirs, ours = load_file(folder / "out.safetensors"), read_saelens(folder, fold=False)
        codes = ours.encode(rows)
        assert (theirs["codes"] != 0).any(), folder.name
        assert difference(codes.dense(), theirs["codes"]) < 1e-5, folder.name
        assert difference(ours.decode(codes, rows), theirs["out"]) < 1e-5, folder.name
        assert difference(read_saelens(folder)(rows), theirs["out"]) < 1e-5, folder.name
