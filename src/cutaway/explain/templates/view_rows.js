// The list: a sentence a row, with the curve running down beside it and a column for each measure.
const viewer = element("viewer");
const rowList = element("v-rows");
const columnHead = element("v-cols");
const LONGEST_NAME = 36;
let rowItems = [];
let columns = [];
let columnWidth = 62;

function kindChip(i) {
  return node("span", { class: `v-chip ${kindClass(i)}` }, node("i", { class: "dot" }), kindOf(i).name);
}

// As many measures as there is room for, the chosen one always among them; the pane beside shows every one.
function planColumns(width) {
  const narrow = width < 620;
  const fixed = 44 + (view.kind ? (width < 940 ? 20 : 102) : 0) + (view.curve ? 90 : 0) + 30;
  const room = narrow ? 0 : width - fixed - Math.max(250, Math.min(420, width * 0.38));
  const fit = Math.max(1, Math.min(measures.length, Math.floor(room / 62)));
  columns = measures.map((_, m) => m).slice(0, measures.length ? fit : 0);
  if (measures.length && !columns.includes(state.measure)) columns[columns.length - 1] = state.measure;
  columnWidth = narrow ? 120 : Math.max(62, Math.min(96, Math.floor(room / Math.max(1, columns.length))));
  viewer.classList.toggle("rows-narrow", narrow);
  viewer.classList.toggle("rows-compact", !narrow && width < 940);
  const strip = columns.length * columnWidth;
  for (const [name, value] of [["--strip", strip], ["--curve", view.curve ? 76 : 0], ["--kind", view.kind ? (width < 940 ? 10 : 90) : 0], ["--cell", columnWidth]]) viewer.style.setProperty(name, `${value}px`);
}

// Both ends of a scale where they fit its column, else the larger one; the zero line stands in every row.
function scaleEnds({ low, high }) {
  const texts = [figureText(low, 2), figureText(high, 2)];
  if (texts.join("").length <= columnWidth / 7) return texts;
  return -low > high ? [texts[0], ""] : ["", texts[1]];
}

// Long names keep both ends: measures of one method often differ in their last word only.
function shorten(name) {
  return name.length <= LONGEST_NAME ? name : `${name.slice(0, LONGEST_NAME - 13).trimEnd()}…${name.slice(-12)}`;
}

function drawHead() {
  const letters = Math.min(LONGEST_NAME, Math.max(0, ...columns.map((m) => measures[m].name.length)));
  viewer.style.setProperty("--head", `${Math.round(32 + 2.7 * letters)}px`);
  const cells = columns.map((m) => {
    const { name } = measures[m];
    const cell = node("button", { type: "button", class: "v-col", "aria-pressed": String(m === state.measure), title: `${name}: ${measures[m].track?.what ?? "after the sentence minus before it"}`, "aria-label": `Size by ${name}` },
      node("span", { class: "v-name" }, shorten(name)), node("span", { class: "v-scale" }, ...scaleEnds(measures[m]).map((text) => node("span", {}, text))));
    cell.addEventListener("click", () => setMeasure(m));
    return cell;
  });
  const hidden = measures.length - columns.length;
  const scale = view.curve ? [node("span", { class: "v-scale" }, node("span", {}, figureText(space.least)), node("span", {}, figureText(space.most)))] : [];
  columnHead.replaceChildren(
    node("span", { class: "n" }, "#"), node("span", {}, view.kind ? node("span", { class: "v-kind-head" }, "Category") : ""),
    node("span", {}, "Sentence", ...(hidden > 0 && columns.length ? [node("span", { class: "v-more" }, `+${hidden} more ${hidden > 1 ? "measures" : "measure"} in the pane beside`)] : [])),
    node("span", { class: "v-col" }, ...(view.curve ? [node("span", { class: "v-curve-name" }, clip(view.curve.name, 26)), ...scale] : [])),
    node("span", { class: "v-strip-head" }, ...cells));
}

// One row's stretch of the curve, from the boundary before (top) to the one after (bottom); rows join up.
function curveCell(i) {
  const { value, low, high } = view.curve;
  const x = (v) => ((100 * (v - space.least)) / (space.most - space.least)).toFixed(1);
  const parts = [];
  if (low && high && [low[i], high[i], low[i + 1], high[i + 1]].every((v) => v !== null)) parts.push(svg("path", { class: "band", d: `M${x(low[i])},0L${x(high[i])},0L${x(high[i + 1])},100L${x(low[i + 1])},100Z` }));
  if (value[i] !== null && value[i + 1] !== null) parts.push(svg("path", { class: "curve", d: `M${x(value[i])},0L${x(value[i + 1])},100` }));
  return node("span", { class: "v-curve c0" }, svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts));
}

function stripCell(i) {
  const inner = columnWidth - 14;
  const parts = columns.flatMap((m, c) => {
    const measure = measures[m];
    const x = (v) => c * columnWidth + 7 + (inner * (Math.min(measure.high, Math.max(measure.low, v)) - measure.low)) / (measure.high - measure.low);
    const value = measure.values[i];
    const zero = svg("path", { class: "zero", d: `M${x(0).toFixed(1)},3V25` });
    if (value === null) return [zero, svg("path", { class: "v-gap", d: `M${(x(0) + 3).toFixed(1)},14h7` })];
    const bar = svg("rect", { class: `bar${m === state.measure ? " now" : ""}`, x: Math.min(x(0), x(value)).toFixed(1), y: 9, width: Math.max(0.6, Math.abs(x(value) - x(0))).toFixed(1), height: 10 });
    const [low, high] = [measure.track?.low?.[i] ?? null, measure.track?.high?.[i] ?? null];
    const control = state.controls ? (measure.track?.control?.[i] ?? null) : null;
    const beside = control === null ? [] : [svg("path", { class: "control", d: `M${x(control).toFixed(1)},6.5v15` })];
    if (low === null || high === null) return [zero, bar, ...beside];
    return [zero, bar, ...beside, svg("path", { class: "whisker", d: `M${x(low).toFixed(1)},14H${x(high).toFixed(1)}M${x(low).toFixed(1)},11.5v5M${x(high).toFixed(1)},11.5v5` })];
  });
  const width = Math.max(1, columns.length * columnWidth);
  return svg("svg", { class: "v-strip", viewBox: `0 0 ${width} 28`, width, height: 28, "aria-hidden": "true" }, ...parts);
}

function buildItem(i) {
  const measure = measureNow();
  const label = `Sentence ${i + 1}${kindOf(i) ? `, ${kindOf(i).name}` : ""}${marked.has(i) ? ", certified" : ""}`;
  const button = node("button", { type: "button", class: "v-num", tabindex: -1, "aria-label": label }, String(i + 1));
  const kind = node("span", { class: "v-kind", "aria-hidden": "true" }, ...(kindOf(i) ? [node("i", { class: "dot" }), node("span", {}, kindOf(i).short)] : []));
  const item = node("li", { class: `v-row ${kindClass(i)}${marked.has(i) ? " marked" : ""}` }, button, kind,
    node("p", { class: "v-text", dir: "auto" }, textOf(i)), view.curve ? curveCell(i) : node("span"), stripCell(i),
    node("span", { class: "v-value" }, measure ? change(measure.values[i], measure.signed, 2) : ""));
  item.dataset.sentence = i;
  return item;
}

function drawRows(width) {
  planColumns(width);
  drawHead();
  rowItems = view.sentences.map((_, i) => buildItem(i));
  arrangeRows();
  markRow();
}

function arrangeRows() {
  const order = view.sentences.map((_, i) => i).filter(passes);
  if (state.order === "size") order.sort((a, b) => (sizeOf(b) ?? -1) - (sizeOf(a) ?? -1) || a - b);
  rowList.replaceChildren(...(order.length ? order.map((i) => rowItems[i]) : [node("li", { class: "empty" }, "No sentence passes these filters.")]));
  element("v-count").textContent = order.length === total ? `${total} ${total === 1 ? "sentence" : "sentences"}` : `${order.length} of ${total} sentences`;
}

function markRow() {
  rowList.querySelector(".is-chosen .v-num")?.setAttribute("tabindex", -1);
  for (const item of rowList.querySelectorAll(".is-chosen")) { item.classList.remove("is-chosen"); item.firstElementChild.removeAttribute("aria-current"); }
  const item = rowItems[state.chosen];
  if (!item) return;
  item.classList.add("is-chosen");
  const button = item.querySelector(".v-num");
  button.setAttribute("aria-current", "true");
  (item.isConnected ? button : rowList.querySelector(".v-num"))?.setAttribute("tabindex", 0);
  if (state.focus && item.isConnected) {
    button.focus({ preventScroll: true });
    item.scrollIntoView({ block: "nearest" });
  }
}

function rowKeys(event) {
  const row = event.target.closest(".v-row");
  if (!row || !event.target.matches(".v-num")) return;
  const shownRows = [...rowList.querySelectorAll(".v-row")];
  const here = shownRows.indexOf(row);
  const target = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + 10, PageUp: here - 10, Home: 0, End: shownRows.length - 1 }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  const next = shownRows[Math.min(shownRows.length - 1, Math.max(0, target))];
  choose(Number(next.dataset.sentence), true);
}
