// What the figure and the trace share: the data, numbers as text, and building nodes. Text only ever enters the
// page as text nodes.
const report = JSON.parse(document.getElementById("data").textContent);
const map = report.anchors;
const count = map.sentences.length;
const NONE = "(none)";
const OTHER = "(other)";
const MAX_CURVES = 6;

function node(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function probability(p) {
  if (p === null) return "–";
  if (p > 0 && p < 0.01) return "<0.01";
  if (p > 0.99 && p < 1) return ">0.99";
  return p.toFixed(2);
}

function signed(x) {
  if (x === null) return "–";
  const size = Math.abs(x).toFixed(2);
  return size === "0.00" ? size : (x < 0 ? "−" : "+") + size;
}

function range(low, high, format) {
  return `${format(low)} to ${format(high)}`;
}

function clip(text, limit) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > limit ? line.slice(0, limit - 1) + "…" : line;
}

function answerName(answer) {
  return { [NONE]: "no answer", [OTHER]: "other answers" }[answer] ?? answer;
}

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
