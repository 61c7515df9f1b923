"""Arithmetic models: plain Hugging Face GPT-2s behind a tokenizer with one token a character."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.questions import Questions
from cutaway.circuits.arithmetic.recipes import Recipe
from cutaway.errors import UsageError
from cutaway.model import Model, load_model
from cutaway.planted.adder import blank_gpt2, symbol_tokenizer

ROWS = 2048
"""Rows of one forward when a whole set is scored."""


def build(recipe: Recipe, device: str | torch.device = "auto") -> Model:
    """An untrained model of the recipe's shape, initialised by its seed; the global random state stays as it was.

    Weights are normal with standard deviation ``0.8 / sqrt(d_model)``, biases 0.
    """
    hf = blank_gpt2(
        symbols=recipe.format.symbols,
        d_model=recipe.d_model,
        n_layers=recipe.layers,
        n_heads=recipe.heads,
        d_mlp=4 * recipe.d_model,
        n_ctx=recipe.format.n_ctx,
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.8 / recipe.d_model**0.5)
            elif ".ln_" in name and name.endswith("weight"):
                parameter.fill_(1.0)
    hf.to(pick_device(device))  # type: ignore[arg-type]
    return Model(hf, symbol_tokenizer(recipe.format.symbols), recipe.name)


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """CUDA where there is one, unless a device is named."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def save(model: Model, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer, so that `load_model` reads the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def load(folder: Path, form: Format) -> Model:
    """Read a stored model in fp32; UsageError when it was made for another format."""
    model = load_model(folder, dtype="float32")
    check_fits(model, form)
    return model


def check_fits(model: Model, form: Format) -> None:
    """UsageError unless the model's vocabulary and context are this format's."""
    symbols = "".join(model.decode([token]) for token in range(model.vocab_size))
    if symbols != form.symbols:
        raise UsageError(f"model {model.name!r} writes with {symbols!r}: this format with {form.symbols!r}")
    if model.n_ctx < form.n_ctx:
        raise UsageError(f"model {model.name!r} sees {model.n_ctx} tokens: {form.digits} digits need {form.n_ctx}")


def rows(model: Model, questions: Questions) -> Int[Tensor, "question pos"]:
    """Whole rows on the model's device; UsageError for a format that the model cannot take."""
    if model.n_ctx < questions.format.n_ctx:
        raise UsageError(
            f"model {model.name!r} sees {model.n_ctx} tokens:"
            f" questions of {questions.format.digits} digits have {questions.format.n_ctx}"
        )
    return torch.from_numpy(np.ascontiguousarray(questions.tokens)).to(model.device)


def answer_logits(hf: Any, ids: Int[Tensor, "batch pos"], form: Format) -> Float[Tensor, "batch token vocab"]:
    """Logits that score the answer tokens: those of the positions one before each."""
    hidden = hf.transformer(input_ids=ids, use_cache=False).last_hidden_state
    return hf.lm_head(hidden[:, form.equals : form.equals + form.n_answer])


def token_loss(
    logits: Float[Tensor, "*batch token vocab"], targets: Int[Tensor, "*batch token"]
) -> Float[Tensor, "*batch token"]:
    """Negative log-probability of each answer token, in nats, computed in float64."""
    logp = logits.double().log_softmax(-1)
    return -logp.gather(-1, targets[..., None])[..., 0]


class Scores:
    """How a model answers a set: loss, predicted tokens and which are wrong, all [question token].

    Predictions are made with the true answer before them (teacher forcing). A whole answer is right under
    teacher forcing exactly when greedy decoding writes it.
    """

    def __init__(self, questions: Questions, loss: np.ndarray, predicted: np.ndarray) -> None:
        self.questions = questions
        self.loss: Float[np.ndarray, "question token"] = loss
        self.predicted: Int[np.ndarray, "question token"] = predicted

    def __repr__(self) -> str:
        return f"Scores({len(self.right)} questions, {self.right.mean():.4f} right)"

    @property
    def wrong(self) -> Bool[np.ndarray, "question token"]:
        return self.predicted != self.questions.answer_tokens

    @property
    def right(self) -> Bool[np.ndarray, " question"]:
        """Whole answers that are right."""
        return np.asarray(~self.wrong.any(axis=1))


@torch.no_grad()
def score(model: Model, questions: Questions) -> Scores:
    """Answer a set of questions, a few thousand rows a forward."""
    ids = rows(model, questions)
    form = questions.format
    loss, predicted = [], []
    for part in ids.split(ROWS):
        logits = answer_logits(model.hf, part, form)
        loss.append(token_loss(logits, part[:, form.equals + 1 :]).cpu().numpy())
        predicted.append(logits.argmax(-1).cpu().numpy())
    if not loss:
        raise UsageError("no question given; give at least one")
    return Scores(questions, np.concatenate(loss), np.concatenate(predicted))
