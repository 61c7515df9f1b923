// The picture along the trace: the curve with its band, the sentences as nodes under it, and links as arcs below,
// all over one axis.
const plot = element("v-plot");
const plotTip = node("div", { class: "tip", hidden: "" });
const layers = {};
let space = null;
let hovered = null;
let longest = 1;

function measurePlot(width) {
  const box = { left: view.curve ? 44 : 12, right: 12, width, top: marked.size ? 34 : 24, curve: view.curve ? 156 : 0, arcs: !graphs.length ? 0 : graphs.every((each) => !each.strength.length) ? 26 : width < 600 ? 120 : 200 };
  box.plotWidth = width - box.left - box.right;
  box.step = box.plotWidth / total;
  box.node = Math.min(9, Math.max(5, box.step * 1.15));
  box.floor = box.top + box.curve;
  box.line = box.floor + 30 + box.node;
  box.height = box.line + box.node + box.arcs + 8;
  box.x = (boundary) => box.left + box.step * boundary;
  const known = view.curve ? [view.curve.value, view.curve.low, view.curve.high].flatMap((list) => (list ?? []).filter((v) => v !== null)) : [];
  box.least = Math.min(0, ...known);
  box.most = known.every((v) => v <= 1) ? 1 : Math.max(...known);
  box.y = (v) => box.floor - (box.curve * (v - box.least)) / (box.most - box.least);
  return box;
}

function plotAxes(box) {
  const parts = [];
  if (view.curve) {
    for (const share of [0, 0.5, 1]) {
      const v = box.least + share * (box.most - box.least);
      parts.push(svg("line", { class: share ? "grid" : "base", x1: box.left, x2: box.left + box.plotWidth, y1: box.y(v), y2: box.y(v) }));
      parts.push(svg("text", { class: "tick", x: box.left - 8, y: box.y(v) + 4, "text-anchor": "end" }, figureText(v)));
    }
    parts.push(svg("text", { class: "label", x: 2, y: 12 }, view.curve.name));
  }
  const room = Math.max(1, Math.floor(box.plotWidth / 36));
  const step = [1, 2, 5, 10, 20, 25, 50, 100].find((s) => total / s <= room) ?? 200;
  for (let i = 0; i < total; i++) {
    if (i !== 0 && (i + 1) % step) continue;
    if (i === 0 && step > 1 && box.step * (step - 1) < 24) continue;
    const tick = svg("text", { class: "tick", x: box.x(i + 0.5), y: box.floor + 18, "text-anchor": "middle" }, String(i + 1));
    tick.dataset.at = i;
    parts.push(tick);
  }
  return parts;
}

// Stretches of the curve without a gap, each with its band where that is known.
function plotCurve(box) {
  if (!view.curve) return [];
  const { value, low, high } = view.curve;
  const parts = [];
  const at = (list, b) => `${box.x(b).toFixed(1)},${box.y(list[b]).toFixed(1)}`;
  for (let start = 0; start <= total; start++) {
    if (value[start] === null || (start && value[start - 1] !== null)) continue;
    let end = start;
    while (end < total && value[end + 1] !== null) end++;
    const span = Array.from({ length: end - start + 1 }, (_, k) => start + k);
    const banded = low && high ? span.filter((b) => low[b] !== null && high[b] !== null) : [];
    if (banded.length > 1) parts.push(svg("path", { class: "band", d: `M${banded.map((b) => at(high, b)).join("L")}L${banded.reverse().map((b) => at(low, b)).join("L")}Z` }));
    if (span.length > 1) parts.push(svg("path", { class: "curve", d: `M${span.map((b) => at(value, b)).join("L")}` }));
    if (span.length === 1 || total <= 60) parts.push(...span.map((b) => svg("circle", { class: "point", cx: box.x(b), cy: box.y(value[b]), r: 2.6 })));
  }
  return [svg("g", { class: "c0 own" }, ...parts)];
}

function plotMarks(box) {
  const parts = [];
  let last = -Infinity;
  for (const i of view.marked) {
    const middle = box.x(i + 0.5);
    parts.push(svg("rect", { class: "column", x: box.x(i) - (box.step < 3 ? 1 : 0), y: box.top, width: Math.max(3, box.step), height: box.line + box.node - box.top }));
    parts.push(svg("path", { class: "flag", d: `M${middle - 4},${box.top - 8}h8l-4,6.5z` }));
    if (middle - last > 24) {
      parts.push(svg("text", { class: "flag-label", x: middle, y: box.top - 12, "text-anchor": "middle" }, String(i + 1)));
      last = middle;
    }
  }
  return parts;
}

function arcPath(box, s, t) {
  const [x1, x2] = [box.x(s + 0.5), box.x(t + 0.5)];
  const depth = box.arcs * Math.pow(Math.min(1, (t - s) / longest), 0.65);
  return `M${x1.toFixed(1)},${box.line}A${((x2 - x1) / 2).toFixed(1)},${depth.toFixed(1)} 0 0 0 ${x2.toFixed(1)},${box.line}`;
}

function strongest(i, direction, most) {
  return (direction === "in" ? graphNow().into : graphNow().outof)[i].slice(0, most);
}

function ends(i, other, direction) {
  return direction === "in" ? [other, i] : [i, other];
}

// Four strengths, one path each: thousands of arcs stay light.
function drawArcs() {
  const graph = graphNow();
  if (!graph) return;
  const paths = new Map();
  const shown = view.sentences.flatMap((_, i) => (passes(i) ? strongest(i, state.direction, state.per) : [])
    .filter(([other]) => passes(other)).map(([other, x]) => [...ends(i, other, state.direction), x]));
  longest = shown.reduce((most, [s, t]) => Math.max(most, t - s), 1);
  for (const [s, t, x] of shown) {
    const share = Math.abs(x) / graph.largest;
    const key = `arc q${share < 0.15 ? 0 : share < 0.35 ? 1 : share < 0.65 ? 2 : 3}${x < 0 ? " minus" : ""}`;
    if (!paths.has(key)) paths.set(key, []);
    paths.get(key).push(arcPath(space, s, t));
  }
  const none = shown.length ? [] : [svg("text", { class: "label", x: space.left, y: space.line + space.node + 20 }, graph.strength.length ? "No link between the sentences shown." : `No link by ${graph.name}.`)];
  layers.arcs.replaceChildren(...[...paths].sort().map(([key, list]) => svg("path", { class: key, d: list.join("") })), ...none);
}

function drawNodes() {
  // Large nodes lie on top of small ones where they touch.
  const order = view.sentences.map((_, i) => i).sort((a, b) => (sizeOf(a) ?? -1) - (sizeOf(b) ?? -1));
  layers.nodes.replaceChildren(...order.map((i) => {
    const size = sizeOf(i);
    const state = `${size === null ? " hollow" : ""}${passes(i) ? "" : " dim"}`;
    return svg("circle", { class: `v-node ${kindClass(i)}${state}`, cx: space.x(i + 0.5).toFixed(1), cy: space.line, r: size === null ? 1.6 : (1.3 + (space.node - 1.3) * Math.sqrt(size)).toFixed(1) });
  }));
}

function drawChoice() {
  const i = state.chosen;
  if (i === null) return;
  const parts = [];
  if (graphNow()) {
    for (const direction of ["in", "out"]) {
      for (const [other, x] of strongest(i, direction, state.per)) {
        for (const [far, y] of strongest(other, direction, Math.min(3, state.per))) parts.push(choiceArc(other, far, y, direction, "far"));
        parts.push(choiceArc(i, other, x, direction, "near"));
      }
    }
  }
  const middle = space.x(i + 0.5);
  parts.push(svg("circle", { class: `v-ring ${kindClass(i)}`, cx: middle, cy: space.line, r: space.node + 1.5 }));
  parts.push(svg("text", { class: "flag-label", x: middle, y: space.floor + 18, "text-anchor": "middle" }, String(i + 1)));
  layers.choice.replaceChildren(...parts);
  layers.mark.setAttribute("x", middle - Math.max(1, space.step / 2));
  layers.mark.setAttribute("visibility", "visible");
  for (const tick of layers.axes.querySelectorAll("[data-at]")) tick.toggleAttribute("hidden", Math.abs(space.x(Number(tick.dataset.at) + 0.5) - middle) < 22);
  plot.setAttribute("aria-valuenow", i + 1);
  plot.setAttribute("aria-valuetext", spoken(i));
}

function choiceArc(i, other, x, direction, near) {
  const width = 1 + 2 * Math.sqrt(Math.abs(x) / graphNow().largest);
  return svg("path", { class: `link ${direction} ${near}${x < 0 ? " minus" : ""}`, "stroke-width": (near === "near" ? width : 1).toFixed(1), d: arcPath(space, ...ends(i, other, direction)) });
}

function spoken(i) {
  const kind = kindOf(i) ? `, ${kindOf(i).name}` : "";
  const measure = measureNow();
  const said = measure ? ` ${measure.name} ${change(measure.values[i], measure.signed)}.` : "";
  const curve = view.curve ? ` ${view.curve.name} from ${curveText(view.curve.value[i])} to ${curveText(view.curve.value[i + 1])}.` : "";
  return `Sentence ${i + 1}${kind}${marked.has(i) ? ", certified" : ""}.${said}${curve} ${clip(textOf(i), 120)}`;
}

function drawPlot(width) {
  space = measurePlot(width);
  const layer = (name, ...children) => (layers[name] = svg("g", { class: `v-${name}` }, ...children));
  layers.mark = svg("rect", { class: "cursor", y: space.top, width: Math.max(2, space.step), height: space.line + space.node - space.top, visibility: "hidden" });
  layers.hover = svg("rect", { class: "cursor faint", y: space.top, width: Math.max(2, space.step), height: space.line + space.node - space.top, visibility: "hidden" });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${space.height}`, width: "100%", "aria-hidden": "true" },
    ...plotMarks(space), layers.hover, layers.mark, layer("axes", ...plotAxes(space)), ...plotCurve(space), layer("arcs"), layer("choice"), layer("nodes"));
  plot.replaceChildren(picture, plotTip);
  drawArcs();
  drawNodes();
  drawChoice();
}

function plotSentence(event) {
  const x = ((event.clientX - plot.getBoundingClientRect().left) * space.width) / plot.clientWidth;
  const i = Math.floor((x - space.left) / space.step);
  return i >= 0 && i < total ? i : null;
}

function plotHover(i) {
  hovered = i;
  plotTip.hidden = i === null;
  layers.hover.setAttribute("visibility", i === null ? "hidden" : "visible");
  if (i === null) return;
  layers.hover.setAttribute("x", space.x(i + 0.5) - Math.max(1, space.step / 2));
  const measure = measureNow();
  const rows = [];
  if (view.curve) rows.push([view.curve.name, `${curveText(view.curve.value[i])} → ${curveText(view.curve.value[i + 1])}`]);
  if (measure) rows.push([measure.name, change(measure.values[i], measure.signed)]);
  plotTip.replaceChildren(
    node("p", { class: "tip-head" }, node("b", {}, `Sentence ${i + 1}`), ...(kindOf(i) ? [kindChip(i)] : [])),
    node("p", { class: "tip-text", dir: "auto" }, clip(textOf(i), 150)),
    node("table", {}, ...rows.map(([name, text]) => node("tr", {}, node("th", { scope: "row" }, clip(name, 34)), node("td", {}, text)))));
  const scale = plot.clientWidth / space.width;
  const beside = space.x(i + 1) * scale + 12;
  const left = beside + plotTip.offsetWidth < plot.clientWidth ? beside : Math.max(0, space.x(i) * scale - plotTip.offsetWidth - 12);
  plotTip.style.transform = `translate(${Math.round(Math.min(left, plot.clientWidth - plotTip.offsetWidth))}px, ${space.line + 18}px)`;
}

function stepTo(key, here) {
  const target = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, PageDown: here + 10, PageUp: here - 10, Home: 0, End: total - 1 }[key];
  return target === undefined ? null : Math.min(total - 1, Math.max(0, target));
}

function startPlot() {
  for (const [name, value] of Object.entries({ tabindex: 0, role: "slider", "aria-label": "Sentences along the trace; choose one", "aria-describedby": "v-hint", "aria-valuemin": 1, "aria-valuemax": total })) plot.setAttribute(name, value);
  plot.addEventListener("pointermove", (event) => { const i = plotSentence(event); if (i !== hovered) plotHover(i); });
  plot.addEventListener("pointerleave", () => plotHover(null));
  plot.addEventListener("click", (event) => { const i = plotSentence(event); if (i !== null) choose(i); });
  plot.addEventListener("keydown", (event) => {
    const target = stepTo(event.key, state.chosen ?? -1);
    if (target === null) return;
    event.preventDefault();
    choose(target);
  });
}
