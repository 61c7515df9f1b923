// The pane of the chosen sentence: its text, every measure, what it is linked with, and what could have stood there.
const pane = node("div", { class: "v-detail" });
const aside = element("v-aside");
const host = node("li", { class: "v-host" });
const answerColours = colourAnswers();

// The trace's own answer first, then the others by how much of the alternatives they take.
function colourAnswers() {
  const weight = new Map([[view.answer, Infinity]]);
  for (const group of view.alternatives ?? []) {
    for (const each of group.shown) for (const [answer, share] of Object.entries(each.answers)) weight.set(answer, (weight.get(answer) ?? 0) + each.share * share);
  }
  const named = [...weight].filter(([answer]) => answer !== NONE && answer !== OTHER).sort((a, b) => b[1] - a[1]);
  return new Map([...named.slice(0, 6).map(([answer], c) => [answer, `c${c}`]), [NONE, "c-none"]]);
}

function detailHead(i) {
  const turn = (to, sign, name) => {
    const button = node("button", { type: "button", class: "v-turn", "aria-label": name }, sign);
    button.disabled = to < 0 || to >= total;
    button.addEventListener("click", () => { choose(to); rowItems[to].scrollIntoView({ block: "nearest" }); pane.querySelector(`.v-turn[aria-label="${name}"]`)?.focus({ preventScroll: true }); });
    return button;
  };
  return node("div", { class: "v-detail-head" },
    node("h3", { role: "status" }, `Sentence ${i + 1}`, node("span", { class: "soft" }, ` of ${total}`)),
    node("span", { class: "v-turns" }, turn(i - 1, "↑", "Previous sentence"), turn(i + 1, "↓", "Next sentence")));
}

function curveLine(i) {
  const { value, low, high, name } = view.curve;
  const at = (b) => (value[b] === null ? view.curve.undefined?.[b] || "undefined" : curveText(value[b]));
  const interval = (b) => (low?.[b] == null || high?.[b] == null ? "" : `${curveText(low[b])} to ${curveText(high[b])}`);
  const row = (when, b) => node("tr", {}, node("th", { scope: "row" }, when), node("td", { class: "n" }, at(b)), node("td", { class: "soft" }, interval(b)));
  return node("table", { class: "v-numbers" }, node("caption", {}, name), node("tbody", {}, row("before", i), row("after", i + 1)));
}

function measureTable(i) {
  const rows = measures.map((measure, m) => {
    const { track, values, name } = measure;
    const cell = node("th", { scope: "row", title: track?.what ?? name }, name, ...(track?.unit ? [node("span", { class: "soft" }, ` ${track.unit}`)] : []));
    const now = m === state.measure ? { class: "now" } : {};
    if (values[i] === null) return node("tr", now, cell, node("td", { class: "undefined", colspan: 2 }, track?.undefined?.[i] || "the curve has a gap here"));
    const [low, high] = [track?.low?.[i] ?? null, track?.high?.[i] ?? null];
    const open = (x) => (x === null ? "open" : figureText(x));
    const interval = low === null && high === null ? [] : [node("span", { class: "soft line" }, `${open(low)} to ${open(high)}`)];
    const control = state.controls ? (track?.control?.[i] ?? null) : null;
    const beside = control === null ? [] : [node("span", { class: "line v-control", title: track.control_is }, `control ${figureText(control)}`)];
    return node("tr", now, cell, node("td", { class: "n" }, change(values[i], measure.signed), ...interval, ...beside), node("td", { class: "soft n" }, String(measure.rank.get(i))));
  });
  const head = node("tr", {}, ...["Measure", "Value", "Rank"].map((name, c) => node("th", { scope: "col", ...(c ? { class: "n" } : {}) }, name)));
  return node("table", { class: "v-numbers" }, node("thead", {}, head), node("tbody", {}, ...rows));
}

function treeItem(i, x, below) {
  const button = node("button", { type: "button", class: `v-link ${kindClass(i)}`, "aria-label": `Sentence ${i + 1}, strength ${figureText(x)}: ${clip(textOf(i), 100)}` },
    node("i", { class: "dot" }), node("span", { class: "n" }, String(i + 1)), node("span", { class: "v-said", dir: "auto" }, clip(textOf(i), 160)), node("span", { class: "n soft" }, change(x, graphNow().signed)));
  button.addEventListener("click", () => { choose(i); rowItems[i].scrollIntoView({ block: "nearest" }); });
  return node("li", {}, button, ...(below.length ? [node("ul", {}, ...below)] : []));
}

function tree(i, direction) {
  const items = strongest(i, direction, state.per).map(([near, x]) =>
    treeItem(near, x, strongest(near, direction, Math.min(3, state.per)).map(([far, y]) => treeItem(far, y, []))));
  const title = direction === "in" ? "Incoming, from earlier sentences" : "Outgoing, to later sentences";
  const none = direction === "in" ? "No measured link comes in." : "No measured link goes out.";
  return node("div", { class: `v-tree ${direction}` }, node("h4", {}, title), items.length ? node("ul", {}, ...items) : node("p", { class: "soft" }, none));
}

function treeSection(i) {
  const graph = graphNow();
  const order = state.direction === "in" ? ["in", "out"] : ["out", "in"];
  const kept = graph.total > graph.strength.length ? ` The page carries the strongest 20 each way, ${graph.strength.length.toLocaleString("en")} of ${graph.total.toLocaleString("en")}.` : "";
  return node("section", { class: "v-part" }, node("h3", {}, "Links: ", node("span", { class: "soft" }, graph.name)),
    ...order.map((direction) => tree(i, direction)),
    node("p", { class: "fine" }, `The ${state.per === 1 ? "strongest link" : `strongest ${state.per} links`} each way${graph.unit ? `, in ${graph.unit}` : ""}, then theirs.${kept}`));
}

// Published replacements come without the answers they lead to; they get no bar.
function answersOf(each) {
  return Object.keys(each.answers).length ? [shareBar(each.answers, (answer) => answerColours.get(answer) ?? "c-rest")] : [];
}

function alternativesSection(i) {
  const { shown, total: all } = view.alternatives[i];
  const items = shown.map((each) => node("li", {},
    node("div", { class: "v-share" }, node("b", {}, probability(each.share)), node("span", { class: "soft" }, `${each.count} ${each.count === 1 ? "draw" : "draws"}`)),
    node("div", {}, node("p", { class: "said", dir: "auto" }, each.text.trim() || "(blank)"), ...answersOf(each))));
  const rest = all - shown.length;
  return node("section", { class: "v-part v-alternatives" }, node("h3", {}, "The model could have said"),
    shown.length ? node("ul", {}, ...items) : node("p", { class: "soft" }, "No alternative is known here."),
    ...(rest > 0 ? [node("p", { class: "fine" }, `${rest} rarer ${rest === 1 ? "alternative is" : "alternatives are"} not shown.`)] : []));
}

function drawDetail() {
  const i = state.chosen;
  if (i === null) return;
  pane.replaceChildren(detailHead(i),
    node("p", { class: "v-signs" }, ...(kindOf(i) ? [kindChip(i)] : []), ...(marked.has(i) ? [node("span", { class: "badge anchor" }, "certified")] : [])),
    node("p", { class: "v-quote", dir: "auto" }, textOf(i)),
    ...(view.curve ? [curveLine(i)] : []),
    ...(measures.length ? [measureTable(i)] : []),
    ...(graphNow() ? [treeSection(i)] : []),
    ...(view.alternatives ? [alternativesSection(i)] : []));
  placeDetail();
}

// Where there is no room beside the list, the pane opens under its sentence.
function placeDetail() {
  const beside = viewer.classList.contains("has-aside");
  const row = rowItems[state.chosen];
  if (beside || !row?.isConnected) {
    host.remove();
    if (pane.parentElement !== aside) aside.append(pane);
    aside.scrollTop = 0;
  } else {
    row.after(host);
    host.append(pane);
  }
}
