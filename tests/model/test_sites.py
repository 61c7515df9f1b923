"""Names of sites: canonical, wildcards, other tools' names, and what is refused."""

import pytest
from torch import nn

from cutaway.errors import UsageError
from cutaway.model import Model, parse
from cutaway.model.families import resolve


def names(model: Model, text: str) -> list[str]:
    return [str(site) for site in parse(text, model.layout)]


def test_wildcards(llama: Model) -> None:
    assert names(llama, "resid_post.*") == ["resid_post.0", "resid_post.1", "resid_post.2"]
    assert names(llama, "k.1.*") == ["k.1.0", "k.1.1"]
    assert names(llama, "z.*.3") == ["z.0.3", "z.1.3", "z.2.3"]
    assert len(names(llama, "z.*.*")) == 12
    assert names(llama, "embed") == ["embed"]


@pytest.mark.parametrize(
    ("alias", "site"),
    [
        ("hook_embed", "embed"),
        ("blocks.2.hook_resid_pre", "resid_pre.2"),
        ("blocks.2.hook_resid_mid", "resid_mid.2"),
        ("blocks.0.attn.hook_z", "z.0"),
        ("blocks.0.attn.hook_pattern", "pattern.0"),
        ("blocks.1.mlp.hook_post", "neurons.1"),
        ("blocks.1.hook_mlp_out", "mlp_out.1"),
        ("model.embed_tokens", "embed"),
        ("lm_head", "logits"),
        ("model.layers.1", "resid_post.1"),
        ("model.layers.1.self_attn", "attn_out.1"),
        ("model.layers.1.self_attn.o_proj", "attn_out.1"),
        ("model.layers.1.mlp.down_proj", "mlp_out.1"),
        ("model.layers.1.self_attn.k_proj", "k.1"),
        ("base_model.model.model.layers.1.mlp", "mlp_out.1"),
    ],
)
def test_names_of_other_tools(llama: Model, alias: str, site: str) -> None:
    assert names(llama, alias) == [site]
    if ".1" in alias or ".2" in alias or ".0" in alias:
        assert len(names(llama, alias.replace(".1", ".*").replace(".2", ".*").replace(".0", ".*"))) == 3


def test_paths_follow_the_family(model: Model, family: str) -> None:
    """A module path means a site only where that module's output is the site's value."""
    prefix = model.layout.prefix
    assert names(model, f"{prefix}.2") == ["resid_post.2"]
    if family == "gemma3":
        assert names(model, "model.layers.0.post_attention_layernorm") == ["attn_out.0"]
        assert names(model, "model.layers.0.self_attn.q_norm") == ["q.0"]
        with pytest.raises(UsageError, match="the output of 'self_attn' is not a site"):
            names(model, "model.layers.0.self_attn")
    if family == "llama_peft":
        assert names(model, "base_model.model.model.layers.0.self_attn.v_proj") == ["v.0"]
        assert names(model, "base_model.model.lm_head") == ["logits"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_pots.1", "did you mean 'resid_post'"),
        ("resid_post.3", r"layer '3' must be 0\.\.2 or '\*'"),
        ("resid_post.-1", r"layer '-1' must be 0\.\.2"),
        ("resid_post", r"write kind\.layer"),
        ("z.0.4", r"head '4' must be 0\.\.3"),
        ("k.0.2", r"head '2' must be 0\.\.1"),
        ("resid_post.0.1", "resid_post has no heads"),
        ("embed.0", "embed has no layer"),
        ("z.0.1.2", r"write kind\.layer"),
        ("blocks.0.hook_resid_pots", "did you mean 'hook_resid_post'"),
        ("blocks.9.hook_resid_post", r"layer '9' must be 0\.\.2"),
        ("model.layers.0.mlp.gate_proj", "the output of 'mlp.gate_proj' is not a site"),
        ("", "no kind ''"),
    ],
)
def test_wrong_names(llama: Model, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, llama.layout)


def test_no_site_at_all(llama: Model) -> None:
    with pytest.raises(UsageError, match="no site given"):
        llama.capture([[1, 2]], [])


def test_parallel_blocks_have_no_middle(make: object) -> None:
    model = make("gpt_neox")  # type: ignore[operator]
    with pytest.raises(UsageError, match="side by side"):
        model.capture([[1, 2]], "resid_mid.0")


def test_unknown_shapes_are_refused_by_name(llama: Model) -> None:
    for block in llama.hf.model.layers:
        block.something = block.self_attn
        del block.self_attn
    with pytest.raises(UsageError, match="no blocks of a known shape"):
        resolve(llama.hf)


def test_experts_have_no_neurons(llama: Model) -> None:
    llama.hf.model.layers[1].mlp = nn.Identity()
    with pytest.raises(UsageError, match="no 'down_proj'"):
        llama.capture([[1, 2]], "neurons.1")
