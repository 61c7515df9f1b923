// The trace: one row a sentence; the alternatives of a row are built when it is first opened.
const list = document.getElementById("rows");
const show = document.getElementById("show");
const sort = document.getElementById("sort");
const reach = Math.min(1, Math.max(0.1, ...map.effect_low.map(Math.abs), ...map.effect_high.map(Math.abs)));
const rows = map.sentences.map((_, i) => buildRow(i));

function statusClass(status) {
  return { anchor: "anchor", "no effect": "none", undecided: "open" }[status];
}

function badge(status) {
  return node("span", { class: `badge ${statusClass(status)}` }, status);
}

function effectBar(i) {
  const x = (value) => 60 + 56 * Math.max(-1, Math.min(1, value / reach));
  const [low, mid, high] = [map.effect_low[i], map.effect[i], map.effect_high[i]];
  return svg("svg", { class: `effect ${statusClass(map.status[i])}`, viewBox: "0 0 120 18", width: 120, height: 18, "aria-hidden": "true" },
    svg("line", { class: "zero", x1: 60, x2: 60, y1: 1, y2: 17 }),
    svg("rect", { class: "bar", x: Math.min(60, x(mid)), y: 5, width: Math.max(0.5, Math.abs(x(mid) - 60)), height: 8, rx: 1 }),
    svg("path", { class: "whisker", d: `M${x(low)},9H${x(high)}M${x(low)},6v6M${x(high)},6v6` }));
}

function buildRow(i) {
  const panel = `alternatives-${i + 1}`;
  const toggle = node("button", { type: "button", class: "toggle", "aria-expanded": "false", "aria-controls": panel, "aria-label": `Alternatives to sentence ${i + 1}` },
    svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, svg("path", { d: "M3,4.5l3,3l3,-3" })));
  const cell = (name, key, ...content) => node("div", { class: name }, node("span", { class: "k" }, key), ...content);
  const head = node("div", { class: "head" },
    node("div", { class: "index" }, String(i + 1)),
    node("p", { class: "text", dir: "auto" }, sentenceText(i)),
    cell("change", "change ", effectBar(i), node("span", { class: "value" }, signed(map.effect[i])),
      node("span", { class: "soft" }, range(map.effect_low[i], map.effect_high[i], signed))),
    cell("state", "status ", badge(map.status[i])),
    cell("stay n", "stays ", probability(map.stay[i])),
    cell("draws n", "draws ", String(map.draws[i])),
    toggle);
  const row = node("li", { class: `row ${statusClass(map.status[i])}`, id: `s${i + 1}` }, head, node("div", { class: "panel", id: panel, hidden: "" }));
  row.dataset.sentence = i;
  return row;
}

function alternativeRow(share, detail, text, answers, kind) {
  return node("tr", { class: kind },
    node("td", { class: "share" }, probability(share), node("span", { class: "soft" }, detail)),
    node("td", { class: "said", dir: "auto" }, text),
    node("td", {}, shareBar(answers, colourOf)));
}

function alternativesTable(i) {
  const own = Object.fromEntries(map.answers.map((answer, k) => [answer, map.curve[i + 1][k]]));
  const body = [alternativeRow(map.stay[i], "as written", sentenceText(i), own, "own")];
  for (const other of map.alternatives[i]) {
    body.push(alternativeRow(other.share, `${other.count} draws`, other.text.trim() || "(blank)", other.answers, "other"));
  }
  const head = node("tr", {}, ...["Probability", "The model says", "and then answers"].map((text) => node("th", { scope: "col" }, text)));
  return node("table", { class: "alternatives" }, node("thead", {}, head), node("tbody", {}, ...body));
}

function fineprint(i) {
  const moves = shown.map((entry) => `${clip(answerName(entry.answer), 24)} ${probability(map.curve[i][entry.index])} → ${probability(map.curve[i + 1][entry.index])}`);
  const evidence = map.log_e[i] === null ? "not available" : `10^${(map.log_e[i] / Math.LN10).toFixed(1)}`;
  const [start, end] = map.spans[i];
  return node("p", { class: "fine" }, `Before → after: ${moves.join(", ")}. Evidence against “changes nothing”: e-value ${evidence}. Tokens ${start}–${end - 1} of the trace.`);
}

function openPanel(i) {
  const panel = rows[i].lastElementChild;
  if (!panel.firstChild) {
    const found = map.alternatives[i].length;
    const title = node("h3", {}, found ? "What the model would have said instead" : "No alternative was seen here");
    const none = map.draws[i] ? "The draws that left the trace here formed no group large enough to show." : "No continuation was drawn that leaves the trace within this sentence.";
    panel.append(title, ...(found ? [alternativesTable(i)] : [node("p", {}, none)]), fineprint(i));
  }
  setOpen(i, true);
}

function setOpen(i, open) {
  rows[i].lastElementChild.hidden = !open;
  rows[i].classList.toggle("is-open", open);
  rows[i].querySelector(".toggle").setAttribute("aria-expanded", String(open));
}

function isOpen(i) {
  return !rows[i].lastElementChild.hidden;
}

function toggleRow(i) {
  if (isOpen(i)) setOpen(i, false);
  else openPanel(i);
}

function reveal(i) {
  if (show.value === "anchor" && map.status[i] !== "anchor") {
    show.value = "all";
    arrange();
  }
  openPanel(i);
  rows[i].querySelector(".toggle").focus({ preventScroll: true });
  rows[i].scrollIntoView({ block: "center" });
}

function arrange() {
  let order = rows.map((_, i) => i);
  if (show.value === "anchor") order = order.filter((i) => map.status[i] === "anchor");
  if (sort.value === "effect") order.sort((a, b) => Math.abs(map.effect[b]) - Math.abs(map.effect[a]));
  list.replaceChildren(...(order.length ? order.map((i) => rows[i]) : [node("li", { class: "empty" }, "No sentence was certified in this run. Show all sentences to read the trace.")]));
  document.getElementById("count").textContent = `${order.length} of ${count} sentences`;
}

function rowKey(event) {
  const row = event.target.closest(".toggle")?.closest(".row");
  if (!row) return;
  const i = Number(row.dataset.sentence);
  if (event.key === "ArrowRight") openPanel(i);
  else if (event.key === "ArrowLeft") setOpen(i, false);
  else if (event.key === "ArrowDown") row.nextElementSibling?.querySelector(".toggle").focus();
  else if (event.key === "ArrowUp") row.previousElementSibling?.querySelector(".toggle").focus();
  else return;
  event.preventDefault();
}

function csv() {
  const per = (name) => map.answers.map((answer) => `${name}[${answer}]`);
  const head = ["sentence", "text", "token_start", "token_end", "status", "effect", "effect_low", "effect_high", "log_e", "stay", "draws", ...per("p_before"), ...per("p_after"), ...per("p_after_low"), ...per("p_after_high")];
  const lines = map.sentences.map((text, i) => [i + 1, text, ...map.spans[i], map.status[i], map.effect[i], map.effect_low[i], map.effect_high[i], map.log_e[i], map.stay[i], map.draws[i], ...map.curve[i], ...map.curve[i + 1], ...map.low[i + 1], ...map.high[i + 1]]);
  return [head, ...lines].map((line) => line.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

startFigure();
arrange();
show.addEventListener("change", arrange);
sort.addEventListener("change", arrange);
list.addEventListener("keydown", rowKey);
list.addEventListener("click", (event) => {
  const head = event.target.closest(".head");
  if (head && getSelection().isCollapsed) toggleRow(Number(head.parentElement.dataset.sentence));
});
for (const link of document.querySelectorAll("a[data-sentence]")) {
  link.addEventListener("click", (event) => { event.preventDefault(); reveal(Number(link.dataset.sentence)); });
}
window.addEventListener("beforeprint", () => {
  map.status.forEach((status, i) => { if (status === "anchor") openPanel(i); });
  drawFigure(680);
});
window.addEventListener("afterprint", () => drawFigure(holder.clientWidth));
offer("json", "anchors.json", "application/json", () => JSON.stringify(report, null, 1));
offer("csv", "anchors.csv", "text/csv", csv);
