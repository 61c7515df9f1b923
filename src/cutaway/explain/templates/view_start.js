// Wires controls to what they redraw.
function setMeasure(m) {
  state.measure = m;
  if (element("v-measure")) element("v-measure").value = String(m);
  on.size.fire();
}

function drawLeast() {
  const measure = measureNow();
  element("v-least-out").textContent = state.least && measure ? figureText((measure.largest * state.least) / 100) : "any";
}

function startKinds() {
  const counts = view.kinds.map((_, k) => view.kind.filter((each) => each === k).length);
  element("v-kinds").replaceChildren(...view.kinds.flatMap((kind, k) => {
    if (!counts[k]) return [];
    const chip = node("button", { type: "button", class: `v-filter k${k}`, "aria-pressed": "false" }, node("i", { class: "dot" }), kind.name, node("span", { class: "soft" }, String(counts[k])));
    chip.addEventListener("click", () => {
      const chosen = !state.kinds.delete(k);
      if (chosen) state.kinds.add(k);
      chip.setAttribute("aria-pressed", String(chosen));
      on.filter.fire();
    });
    return [chip];
  }));
}

function startControls() {
  const select = element("v-measure");
  measures.forEach((measure, m) => select.append(node("option", { value: m }, measure.name)));
  element("v-measure-label").hidden = measures.length === 0;
  element("v-least-label").hidden = measures.length === 0;
  select.addEventListener("change", () => setMeasure(Number(select.value)));
  const listen = (id, type, run) => element(id)?.addEventListener(type, (event) => run(event.target));
  listen("v-set", "change", (input) => { state.set = Number(input.value); on.links.fire(); });
  listen("v-direction", "change", (input) => { state.direction = input.value; on.links.fire(); });
  listen("v-per", "input", (input) => { state.per = Number(input.value); on.links.fire(); });
  listen("v-find", "input", (input) => { state.text = input.value.trim().toLowerCase(); on.filter.fire(); });
  listen("v-least", "input", (input) => { state.least = Number(input.value); on.filter.fire(); });
  listen("v-controls", "change", (input) => { state.controls = input.checked; on.size.fire(); });
  listen("v-order", "change", (input) => { state.order = input.value; on.filter.fire(); });
  listen("v-full", "change", (input) => { rowList.classList.toggle("is-full", input.checked); });
  if (view.kind) startKinds();
  rowList.addEventListener("click", (event) => {
    const row = event.target.closest(".v-row");
    if (row && getSelection().isCollapsed) choose(Number(row.dataset.sentence), true);
  });
  rowList.addEventListener("keydown", rowKeys);
}

function viewCsv() {
  const per = measures.filter((each) => each.track).flatMap(({ track }) => [[track.name, track.value], [`${track.name} low`, track.low], [`${track.name} high`, track.high], [`${track.name} control`, track.control]].filter(([, list]) => list));
  const curve = view.curve ? [["before", 0], ["after", 1]].map(([when, step]) => [`${view.curve.name} ${when}`, view.sentences.map((_, i) => view.curve.value[i + step])]) : [];
  const all = [...curve, ...per];
  const lines = view.sentences.map((text, i) => [i + 1, text, kindOf(i)?.name ?? "", marked.has(i) ? "certified" : "", ...all.map(([, list]) => list[i])]);
  return [["sentence", "text", "category", "certified", ...all.map(([name]) => name)], ...lines].map((line) => line.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function layOut(width = viewer.clientWidth) {
  const beside = width >= 980;
  viewer.classList.toggle("has-aside", beside);
  drawPlot(plot.clientWidth);
  drawRows(columnHead.clientWidth || rowList.clientWidth);
  placeDetail();
}

function firstChoice() {
  if (view.marked.length) return view.marked[0];
  const sizes = view.sentences.map((_, i) => sizeOf(i) ?? 0);
  return sizes.indexOf(Math.max(...sizes));
}

startPlot();
startControls();
for (const run of [drawNodes, drawArcs, drawChoice, () => drawRows(columnHead.clientWidth || rowList.clientWidth), drawDetail, drawLeast]) on.size.add(run);
for (const run of [drawArcs, drawChoice, drawDetail]) on.links.add(run);
for (const run of [drawNodes, drawArcs, drawChoice, arrangeRows, markRow, placeDetail, drawLeast]) on.filter.add(run);
for (const run of [drawChoice, markRow, drawDetail]) on.choose.add(run);
on.links.add(() => { if (element("v-per-out")) element("v-per-out").textContent = state.per === 1 ? "1 link" : `${state.per} links`; });
if (element("v-per")) element("v-per").value = state.per;
layOut();
choose(firstChoice());
on.links.fire();
drawLeast();
let laidOut = viewer.clientWidth;
new ResizeObserver(() => { if (viewer.clientWidth && viewer.clientWidth !== laidOut) { laidOut = viewer.clientWidth; layOut(); } }).observe(viewer);
window.addEventListener("beforeprint", () => layOut(680));
window.addEventListener("afterprint", () => layOut());
offer("v-json", "trace.json", "application/json", () => JSON.stringify(view, null, 1));
offer("v-csv", "trace.csv", "text/csv", viewCsv);
