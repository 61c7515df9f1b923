// What the figure and the trace share: the data, and which answers are drawn in which colour.
const report = JSON.parse(document.getElementById("data").textContent);
const map = report.anchors;
const count = map.sentences.length;
const MAX_CURVES = 6;

function sentenceText(i) {
  return map.sentences[i].trim() || "(blank)";
}

// The trace's own answer, then the answers with the highest peaks; the others stay in the data.
const shown = map.answers
  .map((answer, index) => ({ answer, index, peak: Math.max(...map.curve.map((row) => row[index])) }))
  .sort((a, b) => (a.index && b.index ? b.peak - a.peak : a.index - b.index))
  .slice(0, MAX_CURVES);
let colours = 0;
for (const entry of shown) entry.colour = { [NONE]: "c-none", [OTHER]: "c-rest" }[entry.answer] ?? `c${colours++}`;

function colourOf(answer) {
  return shown.find((entry) => entry.answer === answer)?.colour ?? "c-rest";
}
