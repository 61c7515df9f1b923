"""Which part of the model answers this one prompt, and does the answer hold up where the part was not chosen?

python examples/query_circuit.py
"""

from cutaway import load_model
from cutaway.circuits.query_circuits import Search, indirect_objects, search_circuits

model = load_model("smollm2-135m-instruct", dtype="float32")
queries = indirect_objects(model, 1, wordings=4)
search = Search(sizes=(100, 1000, 5000), steps=10)
found = search_circuits(model, queries.items, search)

query = found.queries[0]
print(query.name, f"(measure {query.full:.2f}, corrupted {query.none:.2f})")
for where in found.places:
    for way in ("single", "wordings", "random"):
        values = "  ".join(
            f"{size}: {value:.2f}" for size, value in zip(found.sizes, query.curve(way, where), strict=True)
        )
        print(f"  NDF, {where:20} {way:9} {values}")
for writer, reader, score in list(query.circuit(0).edges())[:10]:
    print(f"  {writer:>10} -> {reader:<10} {score:+.3f}")
