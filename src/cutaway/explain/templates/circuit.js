// Draws one circuit: the curve over sizes, the layers of nodes, and what the chosen node reads, feeds and attends to.
const circuit = JSON.parse(document.getElementById("circuit-data").textContent);
const nodes = circuit.nodes.map(([name, label, kind, layer, x]) => ({ name, label, kind, layer, x }));
const edges = circuit.edges.map(([source, target, port, score, sizes]) => ({ source, target, port, score, sizes }));
const graphBox = document.getElementById("c-graph");
const aside = document.getElementById("c-aside");
const slider = document.getElementById("c-size");
const WIDTH = 900;
const ROW = 44;
const TOP_EDGES = 12;
let size = circuit.asked.length - 1;
let chosen = null;

function inCircuit(edge) {
  return Math.floor(edge.sizes / 2 ** size) % 2 === 1;
}

function shown(value) {
  return value === null || value === undefined ? "undefined" : value.toFixed(2);
}

function drawCurve() {
  const width = 900, height = 150, left = 44, bottom = 24, right = 12, top = 10;
  const { value, low, high, control } = circuit.curve;
  const all = [value, low, high, control].filter(Boolean).flat().filter((y) => y !== null);
  const floor = Math.min(0, ...all), ceiling = Math.max(1, ...all);
  const logs = circuit.asked.map((n) => Math.log(n));
  const span = logs[logs.length - 1] - logs[0] || 1;
  const x = (i) => left + ((width - left - right) * (logs[i] - logs[0])) / span;
  const y = (v) => height - bottom - ((height - bottom - top) * (v - floor)) / (ceiling - floor);
  const line = (values) => values.map((v, i) => (v === null ? null : `${x(i)},${y(v)}`)).filter(Boolean).join(" ");
  const parts = [];
  for (const tick of [0, 1]) {
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  if (low && high && ![...low, ...high].includes(null)) {
    const back = high.map((v, i) => `${x(i)},${y(v)}`).reverse().join(" ");
    parts.push(svg("polygon", { class: "c-band", points: `${line(low)} ${back}` }));
  }
  if (control) parts.push(svg("polyline", { class: "c-control", points: line(control) }));
  parts.push(svg("polyline", { class: "c-line", points: line(value) }));
  value.forEach((v, i) => {
    if (v === null) return;
    const point = svg("circle", { class: i === size ? "c-point is-now" : "c-point", cx: x(i), cy: y(v), r: i === size ? 6 : 4 },
      svg("title", {}, `${circuit.asked[i]} edges: ${shown(v)}`));
    point.addEventListener("click", () => setSize(i));
    parts.push(point, svg("text", { x: x(i), y: height - 6, "text-anchor": "middle" }, String(circuit.asked[i])));
  });
  const words = `${circuit.curve.name} by number of edges${control ? "; dashed: random circuits of equal size" : ""}`;
  document.getElementById("c-curve").replaceChildren(
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words }, ...parts), node("p", { class: "explain hint" }, words));
}

function drawGraph() {
  const now = edges.filter(inCircuit);
  const used = [...new Set(now.flatMap((edge) => [edge.source, edge.target]))].sort((a, b) => a - b);
  if (chosen !== null && !used.includes(chosen)) chosen = null;
  const layers = [...new Set(used.map((i) => nodes[i].layer))].sort((a, b) => a - b);
  const height = ROW * layers.length + 8;
  const at = (i) => [36 + nodes[i].x * (WIDTH - 52), height - ROW * (layers.indexOf(nodes[i].layer) + 0.5) - 4];
  const largest = Math.max(...now.map((edge) => Math.abs(edge.score)), 1e-12);
  const lines = now.map((edge) => {
    const [x1, y1] = at(edge.source), [x2, y2] = at(edge.target);
    const share = Math.sqrt(Math.abs(edge.score) / largest), middle = (y1 + y2) / 2;
    const of = chosen === edge.source || chosen === edge.target;
    return svg("path", {
      class: `c-edge${edge.score < 0 ? " against" : ""}${of ? " is-of" : ""}`,
      d: `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`,
      "stroke-width": 0.5 + 2.5 * share, "stroke-opacity": 0.25 + 0.6 * share });
  });
  const boxes = used.map((i) => {
    const [x, y] = at(i), width = 14 + 7 * nodes[i].label.length;
    const box = svg("g", { class: `c-node ${nodes[i].kind}${i === chosen ? " is-chosen" : ""}`, tabindex: 0, role: "button", "aria-label": nodes[i].name, "data-node": i },
      svg("rect", { x: x - width / 2, y: y - 10, width, height: 20, rx: 5 }), svg("text", { x, y: y + 4 }, nodes[i].label));
    box.addEventListener("click", () => choose(i));
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(i);
      graphBox.querySelector(`[data-node="${i}"]`)?.focus();
    });
    return box;
  });
  const names = layers.filter((layer) => layer >= 0 && layers.indexOf(layer) < layers.length - 1).map((layer) =>
    svg("text", { class: "c-layer", x: 2, y: height - ROW * (layers.indexOf(layer) + 0.5) }, `L${layer}`));
  graphBox.classList.toggle("has-chosen", chosen !== null);
  graphBox.replaceChildren(svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "group", "aria-label": "The circuit" }, ...lines, ...names, ...boxes));
}

function edgeTable(title, list, end) {
  if (!list.length) return [];
  const rows = [...list].sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, TOP_EDGES).map((edge) => {
    const link = node("button", { type: "button" }, nodes[edge[end]].name);
    link.addEventListener("click", () => choose(edge[end]));
    const port = end === "source" || edge.port === "input" ? edge.port : `its ${edge.port}`;
    return node("tr", {}, node("td", {}, link), node("td", { class: "soft" }, port === "logits" ? "" : port), node("td", { class: "num" }, `${edge.score < 0 ? "−" : "+"}${Math.abs(edge.score).toPrecision(2)}`));
  });
  const more = list.length > TOP_EDGES ? [node("p", { class: "soft" }, `${list.length - TOP_EDGES} more`)] : [];
  return [node("h3", {}, `${title} (${list.length})`), node("table", {}, ...rows), ...more];
}

function heat(pattern) {
  const n = pattern.length, cell = 12, left = 70, high = n * cell;
  const cells = pattern.flatMap((row, q) => row.map((p, k) => p < 0.005 ? null :
    svg("rect", { class: "cell", x: left + k * cell, y: q * cell, width: cell - 0.5, height: cell - 0.5, "fill-opacity": Math.min(1, p) },
      svg("title", {}, `${circuit.tokens[q]} attends to ${circuit.tokens[k]}: ${shown(p)}`)))).filter(Boolean);
  const names = circuit.tokens.slice(0, n).map((token, q) => svg("text", { x: left - 4, y: q * cell + 9, "text-anchor": "end" }, clip(token, 11)));
  return svg("svg", { class: "c-heat", viewBox: `0 0 ${left + high + 2} ${high + 2}`, role: "img", "aria-label": "Attention: a row for each token, a column for each token it attends to" }, ...names, ...cells);
}

function drawAside() {
  if (chosen === null) {
    aside.replaceChildren(node("p", { class: "soft" }, "Choose a node to see what it reads, what reads it and what it attends to."),
      ...(circuit.tokens.length ? [node("h3", {}, "Prompt"), node("p", { dir: "auto" }, circuit.tokens.join(""))] : []),
      ...(circuit.corrupted.length ? [node("h3", {}, "Corrupted"), node("p", { dir: "auto" }, circuit.corrupted.join(""))] : []));
    return;
  }
  const now = edges.filter(inCircuit), pattern = circuit.attention[nodes[chosen].name];
  aside.replaceChildren(node("h3", { id: "c-chosen" }, nodes[chosen].name),
    ...(pattern ? [node("p", { class: "soft" }, "What it attends to, token by token:"), heat(pattern)] : []),
    ...edgeTable("Reads", now.filter((edge) => edge.target === chosen), "source"),
    ...edgeTable("Read by", now.filter((edge) => edge.source === chosen), "target"));
}

function choose(i) {
  chosen = chosen === i ? null : i;
  drawGraph();
  drawAside();
}

function setSize(i) {
  size = i;
  slider.value = String(i);
  const pruned = circuit.kept[i] === circuit.asked[i] ? "" : `, ${circuit.kept[i]} after pruning`;
  document.getElementById("c-size-out").textContent = `${circuit.asked[i]}${pruned}; ${circuit.curve.name} ${shown(circuit.curve.value[i])}`;
  drawCurve();
  drawGraph();
  drawAside();
}

slider.addEventListener("input", () => setSize(Number(slider.value)));
const good = circuit.curve.value.findIndex((v) => v !== null && v >= 0.8);
setSize(good < 0 ? 0 : good);
