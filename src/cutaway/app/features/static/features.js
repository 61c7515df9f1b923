// Reading single tokens of a text, trying a text, and stepping to the next unit. Text only ever enters the page as
// text nodes.
const STEPS = 8;

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shade(value, strongest) {
  if (value === null || strongest <= 0) return "";
  const size = Math.min(STEPS, Math.round((Math.abs(value) / strongest) * STEPS));
  return size ? (value > 0 ? "h" : "l") + size : "";
}

function visible(token) {
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/[\p{C}]/gu, (sign) => "\\u" + sign.codePointAt(0).toString(16).padStart(4, "0"));
}

function shown(value) {
  return value === null ? "special token, not counted" : String(Number(value.toPrecision(3)));
}

function heat(tokens, values, strongest) {
  const peak = values.reduce((best, value, i) => (value !== null && (best < 0 || value > values[best]) ? i : best), -1);
  const text = node("p", { class: "heat", dir: "auto" });
  tokens.forEach((token, i) => {
    const kinds = [shade(values[i], strongest), i === peak && values[i] > 0 ? "peak" : ""].filter(Boolean).join(" ");
    text.append(node("span", { "data-v": shown(values[i]), ...(kinds ? { class: kinds } : {}) }, visible(token)));
  });
  readable(text);
  return text;
}

// One text is one stop of the tab key; arrow keys move from token to token and a note says the value.
function readable(text) {
  const note = node("span", { class: "reading", "aria-live": "polite", hidden: "" });
  let at = -1;
  text.after(note);
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "Text; arrow keys read the value at each token");
  const show = (i) => {
    text.querySelector(".here")?.classList.remove("here");
    at = i;
    note.hidden = i < 0;
    if (i < 0) return;
    if (!note.isConnected) text.after(note);
    const token = text.children[i];
    token.classList.add("here");
    note.textContent = `${token.textContent.trim() || "blank"}: ${token.dataset.v}`;
    note.style.left = `${Math.min(token.offsetLeft, text.offsetLeft + text.clientWidth - note.offsetWidth)}px`;
    note.style.top = `${token.offsetTop + token.offsetHeight + 4}px`;
  };
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const end = { Home: 0, End: text.children.length - 1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    const first = [...text.children].findIndex((token) => token.classList.contains("peak"));
    show(end ?? (at < 0 ? Math.max(first, 0) : Math.min(Math.max(at + step, 0), text.children.length - 1)));
  });
  text.addEventListener("pointerover", (event) => {
    if (event.target !== text) show([...text.children].indexOf(event.target));
  });
  text.addEventListener("pointerleave", () => show(-1));
  text.addEventListener("blur", () => show(-1));
}

async function ask(form, text) {
  const sent = await fetch(form.dataset.to, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text }) });
  const body = await sent.json();
  if (!sent.ok) throw new Error(body.error?.message ?? `the server answered ${sent.status}`);
  return body;
}

function live(id, draw) {
  const form = document.getElementById(id);
  if (!form) return;
  const out = form.querySelector("output"), field = form.querySelector("textarea"), button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    out.replaceChildren("Reading…");
    try {
      const body = await ask(form, field.value);
      out.replaceChildren();
      draw(body, out, form);
      if (!body.same_weights) out.append(node("p", { class: "fine" }, "The model that read this has not exactly the weights that were indexed."));
    } catch (error) {
      out.replaceChildren(node("p", { class: "wrong" }, error.message));
    }
    button.disabled = false;
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

function drawTried(body, out) {
  const top = Math.max(0, ...body.values.filter((value) => value !== null));
  const text = node("p", {});
  out.append(text);
  text.replaceWith(heat(body.tokens, body.values, body.strongest || top));
  const share = body.strongest > 0 ? `, ${Math.round((100 * top) / body.strongest)}% of the largest in the corpus` : "";
  out.append(node("p", { class: "fine" }, top > 0 ? `Largest value ${shown(top)}${share}.` : "Never above zero on this text."));
}

function drawFired(body, out, form) {
  if (!body.units.length) out.append(node("p", {}, "No unit is above zero on this text."));
  const rows = body.units.map((unit) => node("tr", {},
    node("td", {}, node("a", { href: `${form.dataset.home}/${encodeURIComponent(unit.source)}/${unit.unit}` }, `${unit.source} / ${unit.unit}`)),
    node("td", { dir: "auto" }, node("code", { class: "token" }, visible(body.tokens[unit.at]))),
    node("td", { class: "n" }, shown(unit.value)), node("td", { class: "n" }, `${Math.round(100 * unit.share)}%`)));
  const head = ["Unit", "On", "Value", "Of its largest"].map((name, i) => node("th", { scope: "col", ...(i > 1 ? { class: "n" } : {}) }, name));
  if (rows.length) out.append(node("table", { class: "pairs" }, node("thead", {}, node("tr", {}, ...head)), node("tbody", {}, ...rows)));
}

document.querySelectorAll(".heat").forEach(readable);
live("try", drawTried);
live("fires", drawFired);
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const to = { "[": "prev", "]": "next" }[event.key];
  if (to) document.querySelector(`a[rel=${to}]`)?.click();
});
