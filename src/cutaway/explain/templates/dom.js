// What every page's scripts share: building nodes, numbers as text, shares as a bar, files to save. Text only ever
// enters the page as text nodes.
const NONE = "(none)";
const OTHER = "(other)";

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

// Shares of answers as one bar with its words; `colourOf` gives an answer its class.
function shareBar(answers, colourOf) {
  const ordered = Object.entries(answers).filter(([, p]) => p > 0).sort((a, b) => b[1] - a[1]);
  let x = 0;
  const parts = ordered.map(([answer, p]) => {
    const part = svg("rect", { class: `fill ${colourOf(answer)}`, x, y: 0, width: Math.max(0, 100 * p - 0.6), height: 8 });
    x += 100 * p;
    return part;
  });
  const words = ordered.slice(0, 4).map(([answer, p]) =>
    node("span", { class: colourOf(answer) }, node("i", { class: "dot" }), `${clip(answerName(answer), 24)} ${Math.round(100 * p)}%`));
  if (ordered.length > 4) words.push(node("span", {}, `${ordered.length - 4} more`));
  return node("div", { class: "leads" },
    svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts), node("div", { class: "words" }, ...words));
}

function csvCell(value) {
  const text = value === null ? "" : String(value);
  // A spreadsheet would run a cell of text that starts like a formula.
  const safe = typeof value === "string" && /^[\s]*[=+\-@]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// The file is made when it is asked for, so that a large trace does not weigh on opening the page.
function offer(id, name, type, content) {
  document.getElementById(id).addEventListener("click", (event) => {
    event.preventDefault();
    const url = URL.createObjectURL(new Blob([content()], { type }));
    node("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
}
