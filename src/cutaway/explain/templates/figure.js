// The main figure: one curve with its band for each answer, over the sentence boundaries.
const holder = document.getElementById("figure");
const tip = node("div", { class: "tip", hidden: "" });
let layout = null;
let cursor = null;

function drawLegend() {
  const items = shown.map((entry) =>
    node("span", { class: `item ${entry.colour}` },
      svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, class: "curve" })),
      clip(answerName(entry.answer), 32), ...(entry.index ? [] : [node("em", {}, "(the answer given)")])));
  const hidden = map.answers.length - shown.length;
  if (hidden > 0) items.push(node("span", { class: "item rest" }, `${hidden} rarer ${hidden > 1 ? "answers" : "answer"} not drawn`));
  for (const status of ["anchor", "no effect", "undecided"].filter((each) => map.status.includes(each))) {
    const sign = status === "anchor"
      ? svg("path", { d: "M2,2h10l-5,8z", class: "flag" })
      : svg("rect", { x: 1, y: 3, width: 12, height: 6, rx: 2, class: `cell ${statusClass(status)}` });
    items.push(node("span", { class: "item status" }, svg("svg", { width: 14, height: 12, "aria-hidden": "true" }, sign), status));
  }
  document.getElementById("legend").replaceChildren(...items);
}

function measure(width) {
  const narrow = width < 600;
  const labels = narrow ? 12 : Math.min(215, 44 + 7.4 * Math.max(...shown.map((e) => clip(answerName(e.answer), 18).length + 5)));
  const box = { left: 44, right: labels, top: 46, bottom: 58, width, height: narrow ? 310 : 392, narrow };
  box.plotWidth = width - box.left - box.right;
  box.plotHeight = box.height - box.top - box.bottom;
  box.x = (boundary) => box.left + (box.plotWidth * boundary) / count;
  box.y = (p) => box.top + box.plotHeight * (1 - p);
  return box;
}

function axes(box) {
  const parts = [];
  for (const p of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(svg("line", { class: p ? "grid" : "base", x1: box.left, x2: box.left + box.plotWidth, y1: box.y(p), y2: box.y(p) }));
    parts.push(svg("text", { class: "tick", x: box.left - 9, y: box.y(p) + 4, "text-anchor": "end" }, p === 0 || p === 1 ? String(p) : p.toFixed(2)));
  }
  const room = Math.max(1, Math.floor(box.plotWidth / 34));
  const step = [1, 2, 5, 10, 20, 25, 50, 100].find((s) => count / s <= room) ?? 200;
  for (let i = 0; i < count; i++) {
    if (i !== 0 && (i + 1) % step) continue;
    if (i === 0 && step > 1 && box.x(step - 0.5) - box.x(0.5) < 22) continue;
    parts.push(svg("text", { class: "tick", x: box.x(i + 0.5), y: box.y(0) + 33, "text-anchor": "middle" }, String(i + 1)));
  }
  parts.push(svg("text", { class: "label", x: box.left + box.plotWidth / 2, y: box.height - 4, "text-anchor": "middle" }, "Sentence of the trace"));
  parts.push(svg("text", { class: "label", x: 2, y: 12 }, "Probability of each answer"));
  return parts;
}

function statusStrip(box) {
  const gap = box.plotWidth / count > 8 ? 1.5 : 0;
  return map.status.map((status, i) =>
    svg("rect", { class: `cell ${statusClass(status)}`, x: box.x(i) + gap / 2, y: box.y(0) + 8, width: box.x(1) - box.x(0) - gap, height: 7, rx: gap ? 2 : 0 }));
}

function anchorColumns(box) {
  const parts = [];
  let last = -Infinity;
  map.status.forEach((status, i) => {
    if (status !== "anchor") return;
    const middle = box.x(i + 0.5);
    parts.push(svg("rect", { class: "column", x: box.x(i), y: box.top, width: Math.max(1.5, box.x(1) - box.x(0)), height: box.plotHeight }));
    parts.push(svg("path", { class: "flag", d: `M${middle - 5},${box.top - 9}h10l-5,8z` }));
    if (middle - last > 20) {
      parts.push(svg("text", { class: "flag-label", x: middle, y: box.top - 13, "text-anchor": "middle" }, String(i + 1)));
      last = middle;
    }
  });
  return parts;
}

function curveOf(entry, box) {
  const k = entry.index;
  const points = (rows) => rows.map((row, b) => `${box.x(b).toFixed(1)},${box.y(row[k]).toFixed(1)}`);
  const band = `M${points(map.high).join("L")}L${points(map.low).reverse().join("L")}Z`;
  const marks = count <= 60 && k === 0
    ? map.curve.map((row, b) => svg("circle", { class: "point", cx: box.x(b), cy: box.y(row[k]), r: 3.2 }))
    : [];
  return svg("g", { class: entry.colour + (k ? "" : " own") },
    svg("path", { class: "band", d: band }), svg("path", { class: "curve", d: `M${points(map.curve).join("L")}` }), ...marks);
}

// Labels at the curves' ends, pushed apart so that none overlaps.
function endLabels(box) {
  if (box.narrow) return [];
  const labels = shown.map((entry) => ({ entry, value: map.curve[count][entry.index], y: box.y(map.curve[count][entry.index]) }));
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + 17);
  const excess = labels.length ? labels[labels.length - 1].y - box.y(0) : 0;
  if (excess > 0) for (let i = labels.length - 1, limit = box.y(0); i >= 0; i--, limit -= 17) labels[i].y = Math.min(labels[i].y, limit);
  return labels.map(({ entry, value, y }) =>
    svg("g", { class: entry.colour },
      svg("path", { class: "leader", d: `M${box.x(count) + 3},${box.y(value)}L${box.x(count) + 12},${y}` }),
      svg("text", { class: `end${entry.index ? "" : " own"}`, x: box.x(count) + 16, y: y + 4 },
        clip(answerName(entry.answer), 18), svg("tspan", { class: "soft", dx: 7 }, probability(value)))));
}

function drawFigure(width) {
  const box = measure(width);
  const mark = svg("rect", { class: "cursor", y: box.top, width: Math.max(1.5, box.x(1) - box.x(0)), height: box.plotHeight, visibility: "hidden" });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${box.height}`, width: "100%", "aria-hidden": "true" },
    ...anchorColumns(box), ...axes(box), mark, ...[...shown].reverse().map((entry) => curveOf(entry, box)),
    ...statusStrip(box), ...endLabels(box));
  layout = { box, mark };
  holder.replaceChildren(picture, tip);
  if (cursor !== null) point(cursor);
}

function describe(i) {
  const own = `probability of ${answerName(map.answers[0])} from ${probability(map.curve[i][0])} to ${probability(map.curve[i + 1][0])}`;
  return `Sentence ${i + 1}, ${map.status[i]}: ${own}. ${clip(sentenceText(i), 120)}`;
}

function tipContent(i) {
  const rows = shown.map((entry) => {
    const k = entry.index;
    return node("tr", { class: entry.colour },
      node("th", { scope: "row" }, node("i", { class: "dot" }), clip(answerName(entry.answer), 18)),
      node("td", {}, probability(map.curve[i][k]), " → ", node("b", {}, probability(map.curve[i + 1][k]))),
      node("td", { class: "soft" }, range(map.low[i + 1][k], map.high[i + 1][k], probability)));
  });
  return [
    node("p", { class: "tip-head" }, node("b", {}, `Sentence ${i + 1}`), badge(map.status[i])),
    node("p", { class: "tip-text", dir: "auto" }, clip(sentenceText(i), 130)),
    node("table", {}, ...rows),
    node("p", { class: "soft" }, `Change ${signed(map.effect[i])} (${range(map.effect_low[i], map.effect_high[i], signed)}), ${map.draws[i]} draws`),
  ];
}

function point(i) {
  cursor = i;
  const { box, mark } = layout;
  mark.setAttribute("x", box.x(i));
  mark.setAttribute("visibility", "visible");
  tip.replaceChildren(...tipContent(i));
  tip.hidden = false;
  const scale = holder.clientWidth / box.width;
  const beside = box.x(i + 1) * scale + 10;
  const fits = beside + tip.offsetWidth < holder.clientWidth;
  const left = fits ? beside : Math.max(0, box.x(i) * scale - tip.offsetWidth - 10);
  tip.style.transform = `translate(${Math.round(Math.min(left, holder.clientWidth - tip.offsetWidth))}px, ${box.top}px)`;
  holder.setAttribute("aria-valuenow", i + 1);
  holder.setAttribute("aria-valuetext", describe(i));
}

function unpoint() {
  cursor = null;
  tip.hidden = true;
  layout.mark.setAttribute("visibility", "hidden");
}

function sentenceAt(event) {
  const { box } = layout;
  const x = ((event.clientX - holder.getBoundingClientRect().left) * box.width) / holder.clientWidth;
  const i = Math.floor(((x - box.left) / box.plotWidth) * count);
  return i >= 0 && i < count ? i : null;
}

function moveBy(key) {
  const here = cursor ?? -1;
  const target = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, PageUp: here + 10, PageDown: here - 10, Home: 0, End: count - 1 }[key];
  return target === undefined ? null : Math.min(count - 1, Math.max(0, target));
}

function startFigure() {
  for (const [name, value] of Object.entries({ tabindex: 0, role: "slider", "aria-label": "Probability of each answer along the trace; choose a sentence", "aria-describedby": "figure-hint", "aria-valuemin": 1, "aria-valuemax": count, "aria-valuenow": 1, "aria-valuetext": describe(0) })) holder.setAttribute(name, value);
  drawLegend();
  drawFigure(holder.clientWidth);
  new ResizeObserver(() => { if (holder.clientWidth && holder.clientWidth !== layout.box.width) drawFigure(holder.clientWidth); }).observe(holder);
  holder.addEventListener("pointermove", (event) => { const i = sentenceAt(event); if (i === null) unpoint(); else point(i); });
  holder.addEventListener("pointerleave", unpoint);
  holder.addEventListener("blur", unpoint);
  holder.addEventListener("click", (event) => { const i = sentenceAt(event); if (i !== null && event.pointerType !== "touch") reveal(i); });
  holder.addEventListener("keydown", (event) => {
    const target = moveBy(event.key);
    if (target !== null) point(target);
    else if (event.key === "Enter" && cursor !== null) reveal(cursor);
    else if (event.key === "Escape") unpoint();
    else return;
    event.preventDefault();
  });
}
