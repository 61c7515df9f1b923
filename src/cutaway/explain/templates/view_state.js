// The viewer's data and what is chosen: which sentence, measure, links and filters. Nothing here draws.
const view = JSON.parse(document.getElementById("view-data").textContent);
const total = view.sentences.length;
const marked = new Set(view.marked);
const element = (id) => document.getElementById(id);
const measures = view.tracks.map((track) => ({ name: track.name, values: track.value, track }));
if (view.curve) {
  const steps = view.sentences.map((_, i) => difference(view.curve.value[i], view.curve.value[i + 1]));
  const name = `change of ${view.curve.name}`;
  if (!measures.some((each) => each.name === name || same(each.values, steps))) measures.push({ name, values: steps, track: null });
}
for (const each of measures) prepare(each);
const graphs = view.links.map(adjacency);
const state = { chosen: null, measure: measures.length ? 0 : null, set: graphs.length ? 0 : null, per: 2, direction: "in", kinds: new Set(), text: "", least: 0, order: "position", controls: false };

function difference(before, after) {
  return before === null || after === null ? null : after - before;
}

function same(given, steps) {
  const known = given.map((x, i) => [x, steps[i]]).filter(([x]) => x !== null);
  return known.length > 0 && known.every(([x, step]) => step !== null && Math.abs(x - step) < 1e-3);
}

// The scale of a measure always holds zero; intervals and controls beyond the values widen it by half at most.
function prepare(each) {
  const known = each.values.filter((x) => x !== null);
  const ends = [each.track?.low, each.track?.high, each.track?.control].flatMap((list) => (list ?? []).filter((x) => x !== null));
  let [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  const reach = Math.max(high, -low) / 2;
  low = Math.max(Math.min(low, ...ends), low - reach);
  high = Math.min(Math.max(high, ...ends), high + reach);
  each.low = low;
  each.high = high > low ? high : low + 1;
  each.largest = Math.max(0, ...known.map(Math.abs));
  each.signed = low < 0;
  const order = view.sentences.map((_, i) => i).filter((i) => each.values[i] !== null).sort((a, b) => Math.abs(each.values[b]) - Math.abs(each.values[a]));
  each.rank = new Map(order.map((i, place) => [i, place + 1]));
}

function adjacency(links) {
  const graph = { ...links, into: [], outof: [], largest: 0, signed: links.strength.some((x) => x < 0) };
  for (let i = 0; i < total; i++) { graph.into.push([]); graph.outof.push([]); }
  links.strength.forEach((x, e) => {
    const [s, t] = [links.source[e], links.target[e]];
    graph.into[t].push([s, x]);
    graph.outof[s].push([t, x]);
    graph.largest = Math.max(graph.largest, Math.abs(x));
  });
  for (const list of [...graph.into, ...graph.outof]) list.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  return graph;
}

function graphNow() {
  return state.set === null ? null : graphs[state.set];
}

function measureNow() {
  return state.measure === null ? null : measures[state.measure];
}

// How large a sentence is under the chosen measure, from 0 to 1; null where the measure is undefined.
function sizeOf(i) {
  const measure = measureNow();
  if (!measure) return 0.5;
  return measure.values[i] === null ? null : measure.largest ? Math.abs(measure.values[i]) / measure.largest : 0;
}

function passes(i) {
  if (state.kinds.size && !state.kinds.has(view.kind[i])) return false;
  if (state.least && (sizeOf(i) ?? -1) < state.least / 100) return false;
  return !state.text || view.sentences[i].toLowerCase().includes(state.text);
}

function textOf(i) {
  return view.sentences[i].trim() || "(blank)";
}

function kindOf(i) {
  return view.kind === null ? null : view.kinds[view.kind[i]];
}

function kindClass(i) {
  return view.kind === null ? "k-plain" : `k${view.kind[i]}`;
}

function figureText(x, digits = 3) {
  if (x === null) return "–";
  const size = Math.abs(x);
  const text = size >= 1000 ? Math.round(size).toLocaleString("en") : size !== 0 && size < 0.0005 ? size.toExponential(1) : String(Number(size.toPrecision(digits)));
  return x < 0 && text !== "0" ? "−" + text : text;
}

function change(x, withSign, digits = 3) {
  return (withSign && x > 0 ? "+" : "") + figureText(x, digits);
}

// Probabilities keep the report's two decimals; a curve of anything else is written as a plain number.
function curveText(x) {
  const inside = view.curve.value.every((v) => v === null || (v >= 0 && v <= 1));
  return x === null ? "–" : inside ? probability(x) : figureText(x);
}

function listeners() {
  const all = [];
  return { add: (run) => all.push(run), fire: () => all.forEach((run) => run()) };
}
// Who redraws when: the choice of a sentence, the sizes, the links, the filters.
const on = { choose: listeners(), size: listeners(), links: listeners(), filter: listeners() };

function choose(i, focus = false) {
  if (i < 0 || i >= total) return;
  state.chosen = i;
  state.focus = focus;
  on.choose.fire();
}
