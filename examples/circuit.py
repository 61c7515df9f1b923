"""Which connections carry a task, judged on prompts they were not found on; as a page, and as a file for other tools.

python examples/circuit.py
"""

from pathlib import Path

from cutaway import load_model
from cutaway.circuits import Settings, attribute_all, circuit_view, curve, ioi, prune, split, top, write_mib
from cutaway.explain import circuit_page

SIZES = (100, 300, 1000, 3000)

model = load_model("smollm2-135m-instruct", dtype="float32")
task = ioi(model, 8)
parts = split(task.pairs)
graph = attribute_all(model, parts.discovery, Settings("eap-ig", steps=5))
judged = curve(model, graph, parts.held_out, SIZES)

print(task)
print(judged.to_frame().to_string(index=False))
for writer, reader, score in list(graph.keep(top(graph, 8)).edges()):
    print(f"  {writer:>10} -> {reader:<10} {score:+.3f}")

circuits = [prune(graph.wiring, top(graph, size)) for size in SIZES]
view = circuit_view(graph, circuits, judged.drawn(), title="Who was given the thing?", asked=SIZES)
Path("circuit.html").write_text(circuit_page(view), encoding="utf-8")
write_mib(graph.keep(circuits[-1]), "circuit.json", d_model=model.d_model)
