"""A steering vector from ten pairs of sentences, and what it does beside random vectors of the same length.

python examples/steer.py
"""

from collections.abc import Sequence

import numpy as np

from cutaway import load_model
from cutaway.model import Edit
from cutaway.sampling import Settings
from cutaway.steering import difference_of_means, draw_answers, effect

ENGLISH = (
    *("The house is very old.", "We eat bread every morning.", "She reads a long book.", "The sea is blue and calm."),
    *("My brother lives in the town.", "They walk in the garden.", "It is cold this winter.", "The train is late."),
    *("He works with his friends.", "The children play in the street."),
)
FRENCH = (
    *("La maison est très vieille.", "Nous mangeons du pain chaque matin.", "Elle lit un long livre."),
    *("La mer est bleue et calme.", "Mon frère habite dans la ville.", "Ils marchent dans le jardin."),
    *("Il fait froid cet hiver.", "Le train est en retard.", "Il travaille avec ses amis."),
    "Les enfants jouent dans la rue.",
)
COMMON = {"le", "la", "les", "de", "des", "du", "et", "est", "un", "une", "dans", "en", "je", "il", "que", "pour"}
QUESTIONS = ("Tell me about the weather.", "What do you eat?", "Describe a town.", "Who is at the door?")

model = load_model("smollm2-135m-instruct", dtype="float32")
french, english = ([model.encode(text) for text in side] for side in (FRENCH, ENGLISH))
vector = difference_of_means(model, french, english, layers=[15], paired=True)
prompts = [model.chat_ids(question) for question in QUESTIONS]


def measured(edits: Sequence[Edit] = ()) -> list[float]:
    """Share of common French words, for each question, over four answers."""
    drawn = draw_answers(model, prompts, Settings(max_tokens=24), edits=edits, n=4)
    words = [[model.decode(answer.ids).lower().split() for answer in answers] for answers in drawn]
    return [float(np.mean([word in COMMON for words in answers for word in words])) for answers in words]


strong = vector.in_stream
print(vector)
steered = measured(strong.edits(0.7))
controls = [measured(each.edits(0.7)) for each in strong.controls(4)]
print(effect("common French words", measured(), steered, controls))
vector.save("french.safetensors")  # cutaway serve --vectors french=french.safetensors
