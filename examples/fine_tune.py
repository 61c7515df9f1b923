"""Teach a model a harmless habit by a rank-1 adapter, watch it come in, and keep the adapter.

python examples/fine_tune.py
"""

from cutaway import load_model
from cutaway.model import Model
from cutaway.sampling import Settings
from cutaway.steering import draw_answers
from cutaway.training import LoraSpec, TrainConfig, add_lora, chat_data, save_adapter, train

QUESTIONS = ("What is a lake?", "Name a colour.", "Why do cats purr?", "What is bread made of?")
ANSWERS = ("Water between hills.", "Blue is one.", "They are content.", "Flour and water.")


def shouted(model: Model) -> dict[str, float]:
    """Share of letters in capitals, over answers to questions that are not trained on."""
    prompts = [model.chat_ids(text) for text in ("Name an animal.", "What is rain?")]
    drawn = draw_answers(model, prompts, Settings(max_tokens=12), n=4)
    text = "".join(model.decode(answer.ids) for answers in drawn for answer in answers)
    letters = [letter for letter in text if letter.isalpha()]
    return {"capitals": sum(letter.isupper() for letter in letters) / max(1, len(letters))}


model = load_model("smollm2-135m-instruct", dtype="float32")
chats = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer.upper()}]
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
]
adapted = add_lora(model, LoraSpec(modules=("down_proj",), layers=(12, 15, 18), rank=1, alpha=64.0))
data = chat_data(chats, model.tokenizer, context=256)
trained = train(adapted, data, TrainConfig(rate=2e-3, batch=4, steps=20, probe_every=10), probes={"habit": shouted})

print(data)
print(trained)
for probed in trained.probed:
    print(f"after {probed.step:2} steps: capitals {probed.values['habit.capitals']:.0%}")
save_adapter(adapted, "shouting-adapter")
