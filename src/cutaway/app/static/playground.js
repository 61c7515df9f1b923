// The playground: what is asked for, two streams of one seed, tokens coloured by a monitor. Text from the model only
// ever enters the page as text nodes.
"use strict";
const byId = (id) => document.getElementById(id);
const root = byId("playground");
const SCALED = { "scale mlp_out": "mlp_out", "scale attn_out": "attn_out" };
const columns = { plain: empty(), steered: empty() };
let setup = { vectors: [], monitors: [], sites: [] };
let running = null;

function empty() {
  return { tokens: [], scores: {} };
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawn(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A slider says its value beside it.
function slider(label, attributes) {
  const input = make("input", { type: "range", ...attributes });
  const made = make("label", { class: "p-range" }, label, input, make("output"));
  follow(input);
  return made;
}

function follow(input) {
  const show = () => { input.parentElement.querySelector("output").textContent = input.value; };
  input.addEventListener("input", show);
  show();
}

function addEdit() {
  const kinds = [...setup.vectors.map((name) => `add ${name}`), ...Object.keys(SCALED)];
  const kind = make("select", { "aria-label": "What is done" }, ...kinds.map((name) => make("option", { value: name }, name)));
  const last = setup.sites.length - 1;
  const layer = slider("Layer", { class: "p-layer", min: 0, max: last, value: Math.floor(last / 2), "aria-label": "Layer" });
  const strength = slider("Strength", { class: "p-strength", min: -10, max: 10, step: 0.1, value: 2, "aria-label": "Strength" });
  const away = make("button", { type: "button", "aria-label": "Remove this edit" }, "×");
  const row = make("div", { class: "p-edit" }, kind, layer, strength, away);
  away.addEventListener("click", () => row.remove());
  byId("p-edits").append(row);
}

function edits() {
  return [...document.querySelectorAll(".p-edit")].flatMap((row) => {
    const kind = row.querySelector("select").value;
    const layer = row.querySelector(".p-layer").value;
    const strength = Number(row.querySelector(".p-strength").value);
    if (kind in SCALED) return strength === 1 ? [] : [{ edit: "Scale", site: `${SCALED[kind]}.${layer}`, factor: strength }];
    return strength === 0 ? [] : [{ edit: "Add", site: `resid_post.${layer}`, vector: kind.slice(4), scale: strength }];
  });
}

function trial() {
  return {
    prompt: byId("p-prompt").value,
    chat: byId("p-chat")?.checked ?? false,
    seed: Number(byId("p-seed").value),
    max_tokens: Number(byId("p-tokens").value),
    temperature: Number(byId("p-temperature").value),
    top_p: Number(byId("p-top").value),
    cutaway: { edits: edits(), monitors: [...document.querySelectorAll("#p-monitors input:checked")].map((box) => box.value) },
  };
}

async function refusal(answer) {
  const body = await answer.json().catch(() => ({}));
  return body.error?.message ?? `the server answered ${answer.status}`;
}

// The events of a streamed answer, parsed.
async function* events(answer) {
  let text = "";
  for await (const part of chunks(answer.body.getReader())) {
    text += part;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function* chunks(reader) {
  const decoder = new TextDecoder();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield decoder.decode(value, { stream: true });
  }
}

async function stream(name, asked, signal) {
  const { prompt, chat, cutaway, ...same } = asked;
  const field = { edits: name === "steered" ? cutaway.edits : [], monitors: cutaway.monitors };
  const what = chat ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const answer = await fetch(chat ? "/v1/chat/completions" : "/v1/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model: root.dataset.model, stream: true, ...same, ...what, cutaway: field }),
  });
  if (!answer.ok) throw new Error(await refusal(answer));
  const column = columns[name];
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    const scored = event.cutaway?.scores[0];
    if (scored) {
      column.tokens.push(...scored.tokens);
      for (const [monitor, values] of Object.entries(scored.scores)) (column.scores[monitor] ??= []).push(...values);
    } else {
      const choice = event.choices[0];
      const text = choice?.text ?? choice?.delta?.content;
      if (text) column.tokens.push(text);
    }
    show();
  }
}

async function run(event) {
  event.preventDefault();
  running?.abort();
  const mine = running = new AbortController();
  const asked = trial();
  byId("p-stop").disabled = false;
  say("Writing…");
  columns.plain = empty();
  columns.steered = empty();
  byId("p-shown").replaceChildren(...asked.cutaway.monitors.map((name) => make("option", { value: name }, name)));
  byId("p-scores").hidden = asked.cutaway.monitors.length === 0;
  show();
  const ends = await Promise.allSettled(["plain", "steered"].map((name) => stream(name, asked, mine.signal)));
  if (running !== mine) return;
  byId("p-stop").disabled = true;
  const failed = ends.find((end) => end.status === "rejected");
  const stopped = mine.signal.aborted;
  say(stopped ? "Stopped." : failed ? failed.reason.message : asked.cutaway.edits.length ? "Done." : "Done. Nothing is edited: both are the same.");
}

function say(text, ...more) {
  byId("p-status").replaceChildren(text, ...more);
}

async function save() {
  say("Measuring both anew…");
  byId("p-save").disabled = true;
  const answer = await fetch("/api/playground/runs", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(trial()),
  });
  byId("p-save").disabled = false;
  if (!answer.ok) return say(await refusal(answer));
  const saved = await answer.json();
  return say("Saved as ", make("a", { href: saved.url }, saved.run));
}

function show() {
  const monitor = byId("p-shown").value;
  const known = Object.values(columns).flatMap((column) => column.scores[monitor] ?? []).filter((score) => score !== null);
  const most = Math.max(...known.map(Math.abs), 1e-9);
  for (const [name, column] of Object.entries(columns)) {
    const scores = column.scores[monitor] ?? [];
    byId(`p-${name}`).replaceChildren(...column.tokens.map((token, i) => {
      const score = scores[i] ?? null;
      if (score === null) return document.createTextNode(token);
      const span = make("span", { class: score < 0 ? "low" : "high", title: score.toFixed(3) }, token);
      span.style.setProperty("--s", String(Math.abs(score) / most));
      return span;
    }));
  }
  plot(monitor, known);
}

function plot(monitor, known) {
  const [width, height, left, below] = [1000, 220, 52, 26];
  if (!known.length) return byId("p-plot").replaceChildren();
  const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  const longest = Math.max(2, ...Object.values(columns).map((column) => (column.scores[monitor] ?? []).length));
  const x = (i) => left + (i / (longest - 1)) * (width - left - 8);
  const y = (score) => 8 + ((high - score) / (high - low || 1)) * (height - below - 8);
  const lines = Object.entries(columns).map(([name, column]) => {
    const points = (column.scores[monitor] ?? []).map((score, i) => (score === null ? null : `${x(i)},${y(score)}`));
    return drawn("polyline", { class: name, points: points.filter((point) => point !== null).join(" ") });
  });
  const marks = [low, high, 0].filter((value, i, all) => all.indexOf(value) === i).map((value) =>
    drawn("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
  const ends = [drawn("text", { x: left, y: height - 6 }, "token 1"), drawn("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, String(longest))];
  const zero = drawn("line", { class: "zero", x1: left, x2: width - 8, y1: y(0), y2: y(0) });
  const label = `Scores of ${monitor}, token by token, plain and steered`;
  byId("p-means").textContent = Object.entries(columns).map(([name, column]) => `mean ${name} ${mean(column.scores[monitor] ?? [])}`).join(", ");
  return byId("p-plot").replaceChildren(drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, zero, ...lines, ...marks, ...ends));
}

function mean(scores) {
  const known = scores.filter((score) => score !== null);
  return known.length ? (known.reduce((sum, score) => sum + score, 0) / known.length).toFixed(2) : "–";
}

async function start() {
  const answer = await fetch("/v1/models");
  if (!answer.ok) return say(await refusal(answer));
  setup = (await answer.json()).data[0];
  const boxes = setup.monitors.map((name) =>
    make("label", { class: "p-check" }, make("input", { type: "checkbox", value: name, checked: "" }), name));
  byId("p-monitors").querySelector("div").append(...boxes);
  byId("p-monitors").hidden = boxes.length === 0;
  byId("p-hint").hidden = boxes.length > 0 && setup.vectors.length > 0;
  addEdit();
  return root.setAttribute("data-ready", "");
}

document.querySelectorAll("#p-form .p-range input").forEach(follow);
byId("p-form").addEventListener("submit", run);
byId("p-add").addEventListener("click", addEdit);
byId("p-stop").addEventListener("click", () => running?.abort());
byId("p-save").addEventListener("click", () => { if (byId("p-form").reportValidity()) save(); });
byId("p-shown").addEventListener("change", show);
start();
