// A conversation's tokens, coloured by their projections on persona vectors.
//
// `show(host, payload, kernel)` draws it. What a payload holds is said in persona_lens/live/payload.py; `kernel`, where
// there is one, samples what has not been sampled. All text is set as text: none of it is ever read as HTML.

const ORANGE = [230, 159, 0];
const BLUE = [86, 180, 233];

const STYLE = `
:host { display: block; }
.root { --paper: #ffffff; --ink: #222222; --soft: #555555; --line: #c9c9c9; --accent: #0072b2;
  background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; padding: 10px 14px;
  border: 1px solid var(--line); border-radius: 6px; max-width: 72em; box-sizing: border-box; }
.root.dark { --paper: #161616; --ink: #eeeeee; --soft: #b5b5b5; --line: #4a4a4a; --accent: #56b4e9; color-scheme: dark; }
.head { color: var(--soft); font-size: 12px; margin: 0 0 6px; }
.controls { display: flex; flex-wrap: wrap; gap: 6px 26px; align-items: end; margin-bottom: 8px; }
.controls label, fieldset { display: grid; grid-template-columns: auto; border: 0; padding: 0; margin: 0; }
.controls .name, legend { font-size: 12px; color: var(--soft); padding: 0; }
.traits { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.controls .traits label, .controls .check { display: inline-flex; align-items: center; gap: 5px; }
input[type=range] { width: 15em; accent-color: var(--accent); margin: 4px 0; }
input[type=radio], input[type=checkbox] { accent-color: var(--accent); margin: 0; }
input[type=number], input[type=text], button { font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid var(--soft); border-radius: 4px; padding: 2px 8px; }
input[type=number] { width: 5em; }
.pair { display: flex; gap: 8px; align-items: center; }
form { display: flex; gap: 8px; margin: 0 0 8px; }
form input { flex: 1; min-width: 8em; }
button { cursor: pointer; }
button:disabled { cursor: default; opacity: .5; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(17em, 1fr)); gap: 14px; }
.panel h4 { margin: 0 0 2px; font-size: 13px; }
.tokens { font: 14px/1.9 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.turn { margin: 0 0 6px; padding-left: 8px; border-left: 3px solid var(--line); }
.role { display: block; font: 11px/1.4 system-ui, sans-serif; color: var(--soft); }
.token { border: 2px solid transparent; border-width: 2px 0; cursor: default; }
.token.steered { border-bottom-color: var(--ink); }
.token.unusual { border-top: 2px dotted var(--ink); }
.token.here, .token:focus-visible { outline: 2px solid var(--accent); outline-offset: 0; }
.template .token { font-size: 11px; }
.status { min-height: 1.5em; font-size: 12px; color: var(--soft); }
.status.wrong { color: #d55e00; font-weight: 600; }
.dark .status.wrong { color: #e69f00; }
.legend { display: flex; align-items: center; gap: 8px; font-size: 12px; color: var(--soft); flex-wrap: wrap; }
.bar { width: 11em; height: 12px; border: 1px solid var(--line); }
.key { border-bottom: 2px solid var(--ink); }
.key.unusual { border: 0; border-top: 2px dotted var(--ink); }
.readout { position: sticky; bottom: 0; background: var(--paper); border-top: 1px solid var(--line); margin-top: 8px;
  padding-top: 6px; min-height: 4.6em; overflow-x: auto; }
.readout code { background: none; color: inherit; font-family: ui-monospace, Menlo, Consolas, monospace;
  border: 1px solid var(--line); padding: 0 4px; white-space: pre; }
table { border-collapse: collapse; font-size: 12px; margin: 3px 0; }
th, td { border: 0; border-bottom: 1px solid var(--line); padding: 1px 14px 1px 0; text-align: right; font-weight: 400;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); }
td.text { white-space: pre-wrap; font-family: ui-monospace, Menlo, Consolas, monospace; max-width: 26em; }
.scroll { max-height: 22em; overflow: auto; }
summary { cursor: pointer; font-size: 12px; color: var(--soft); }
`;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // texts become text nodes
  return element;
}

// Numbers --------------------------------------------------------------------------------------------------------

function readHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function readHalves(text, scale) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, at) => readHalf(view.getUint16(2 * at, true)) * scale);
}

function readTokens(part, nValues) {
  const values = readHalves(part.projections, part.scale);
  return part.texts.map((text, at) => ({
    text,
    turn: part.turns[at],
    steered: part.steered[at] === "1",
    values: values.subarray(at * nValues, (at + 1) * nValues), // of [trait, layer]
  }));
}

function readPayload(payload) {
  const nValues = payload.traits.length * payload.n_layers;
  const variants = payload.variants.map((one) => ({
    coefficient: one.coefficient,
    additions: one.additions, // what else was added to a message, in words, by turn
    tokens: readTokens(one, nValues),
  }));
  return { ...payload, nValues, variants };
}

const write = (value) => {
  if (value === null || Number.isNaN(value)) return "not known";
  return (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2)).replace("-", "−");
};

function median(values) {
  const sorted = values.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : 0;
}

// What is ordinary at a trait and layer, and how far from it a full colour is: the farthest token of a message.
function findScale(data, trait, layer) {
  const at = trait * data.n_layers + layer;
  const list = (one) => one.tokens.filter((token) => token.turn >= 0).map((token) => token.values[at]);
  const plain = data.variants.find((one) => one.coefficient === 0) ?? data.variants[0];
  const middle = data.mean[trait][layer] ?? median(list(plain));
  const distances = data.variants.flatMap(list).map((value) => Math.abs(value - middle));
  const farthest = distances.reduce((most, one) => (one > most && one < Infinity ? one : most), 0);
  return { middle, farthest: farthest || 1 };
}

// Colours --------------------------------------------------------------------------------------------------------

function luminance(colour) {
  const [r, g, b] = colour.map((one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export function paint(element, strength, isDark) {
  const share = Number.isNaN(strength) ? 0 : Math.min(1, Math.abs(strength));
  const paper = isDark ? [22, 22, 22] : [255, 255, 255];
  const mixed = (strength > 0 ? ORANGE : BLUE).map((one, at) => Math.round(share * one + (1 - share) * paper[at]));
  element.style.background = `rgb(${mixed.join(",")})`;
  element.style.color = luminance(mixed) > 0.179 ? "#111111" : "#f2f2f2";
}

// Whether the page behind an element is dark, as JupyterLab's dark theme and the site's are.
function isOnDark(element) {
  for (let node = element; node; node = node.parentElement ?? node.getRootNode().host ?? null) {
    const parts = getComputedStyle(node).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
    if (parts.length === 3 || parts[3] > 0.5) return luminance(parts.slice(0, 3)) < 0.3;
  }
  return false;
}

// The view -------------------------------------------------------------------------------------------------------

class View {
  constructor(host, payload, kernel) {
    this.kernel = kernel;
    this.data = readPayload(payload);
    this.trait = Math.max(0, this.data.traits.indexOf(this.data.along));
    this.layer = this.data.layer ?? this.data.n_layers >> 1;
    this.coefficient = this.data.variants.at(-1).coefficient;
    this.withTemplate = false;
    this.waiting = null; // a timer, until a coefficient that was chosen is asked for
    this.underWay = 0; // what was asked for and has not ended
    this.id = Math.random().toString(36).slice(2);
    this.root = make("section", { class: "root", "aria-label": "Conversation coloured by projection" });
    host.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's, which would take the arrow keys
    const shadow = host.shadowRoot ?? host.attachShadow({ mode: "open" });
    shadow.replaceChildren(make("style", {}, STYLE), this.root);
    this.build();
    this.rebuild();
    const look = () => this.adapt(isOnDark(host.parentElement ?? document.body));
    look();
    setTimeout(look, 300); // a theme's colours may come after its name
    this.watcher = new MutationObserver(() => [0, 300, 1500].forEach((wait) => setTimeout(look, wait)));
    for (const node of [document.documentElement, document.body]) this.watcher.observe(node, { attributes: true });
  }

  adapt(isDark) {
    if (this.root.classList.toggle("dark", isDark) !== this.isDark) {
      this.isDark = isDark;
      this.colour();
    }
  }

  // Controls ---------------------------------------------------------------------------------------------------

  build() {
    this.head = make("p", { class: "head" });
    this.form = this.kernel ? this.buildForm() : "";
    this.traitBox = make("fieldset", {}, make("legend", {}, "Trait"), this.buildTraits());
    this.layerName = make("span", { class: "name" });
    this.layerInput = make("input", { type: "range", min: 0, max: this.data.n_layers - 1, step: 1, value: this.layer });
    this.layerInput.addEventListener("input", () => {
      this.layer = Number(this.layerInput.value);
      this.colour();
    });
    this.coefficientBox = make("div");
    const template = make("input", { type: "checkbox" });
    template.addEventListener("change", () => {
      this.withTemplate = template.checked;
      this.rebuild();
    });
    this.panels = make("div", { class: "panels" });
    this.status = make("div", { class: "status", role: "status", "aria-live": "polite" });
    this.legend = make("div", { class: "legend" });
    this.readout = make("div", { class: "readout" });
    this.numbers = make("details", {}, make("summary", {}, "Table of numbers"));
    this.numbers.addEventListener("toggle", () => this.fillNumbers());
    this.root.append(
      this.head,
      this.form,
      make(
        "div",
        { class: "controls" },
        this.traitBox,
        make("label", {}, this.layerName, this.layerInput),
        this.coefficientBox,
        make("label", { class: "check" }, template, "chat template's tokens"),
      ),
      this.panels,
      this.status,
      this.legend,
      this.readout,
      this.numbers,
    );
    this.panels.addEventListener("mouseover", (event) => this.point(event.target));
    this.panels.addEventListener("mouseleave", () => this.point(this.focused));
    this.panels.addEventListener("focusin", (event) => this.focus(event.target));
    this.panels.addEventListener("keydown", (event) => this.move(event));
    this.panels.addEventListener("click", (event) => event.target.closest(".token")?.focus());
  }

  buildTraits() {
    const box = make("div", { class: "traits" });
    this.data.traits.forEach((name, at) => {
      const input = make("input", { type: "radio", name: `trait-${this.id}`, value: at });
      input.checked = at === this.trait;
      input.addEventListener("change", () => {
        this.trait = at;
        this.colour();
      });
      box.append(make("label", {}, input, name));
    });
    return box;
  }

  buildForm() {
    this.question = make("input", { type: "text", "aria-label": "A new question", placeholder: "Ask something else …" });
    this.askButton = make("button", { type: "submit" }, "Ask");
    this.stopButton = make("button", { type: "button" }, "Stop");
    this.stopButton.disabled = true;
    this.stopButton.addEventListener("click", () => this.kernel.send({ type: "stop" }));
    const form = make("form", {}, this.question, this.askButton, this.stopButton);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const question = this.question.value.trim();
      if (question) this.request({ type: "ask", question, coefficient: this.coefficient });
    });
    // What is typed here is meant for the question, not for the notebook's shortcuts.
    for (const kind of ["keydown", "keypress", "keyup"]) form.addEventListener(kind, (event) => event.stopPropagation());
    return form;
  }

  // The slider goes over what is sampled already; with a kernel over everything between.
  buildCoefficients() {
    const known = this.data.variants.map((one) => one.coefficient);
    const canSample = this.kernel && this.data.can_steer;
    if (known.length < 2 && !canSample) return this.coefficientBox.replaceChildren();
    this.coefficientName = make("span", { class: "name" });
    const range = make("input", { type: "range" });
    if (canSample) {
      const limit = Math.max(1, ...known.map(Math.abs), Math.abs(this.coefficient)) * 1.5;
      const step = [0.25, 0.1, 0.05, 0.01].find((one) => known.every((c) => Math.abs(c / one - Math.round(c / one)) < 1e-6));
      const end = Math.ceil(limit / (step ?? 0.25)) * (step ?? 0.25);
      for (const [name, value] of Object.entries({ min: -end, max: end, step: step ?? "any" })) range.setAttribute(name, value);
      range.value = this.coefficient;
      const exact = make("input", { type: "number", step: "any", "aria-label": "Steering coefficient, exactly" });
      exact.value = this.coefficient;
      range.addEventListener("input", () => {
        exact.value = range.value;
        this.choose(Number(range.value));
      });
      exact.addEventListener("change", () => {
        if (exact.value !== "" && Number.isFinite(Number(exact.value))) this.choose(Number(exact.value));
      });
      this.exact = exact;
    } else {
      for (const [name, value] of Object.entries({ min: 0, max: known.length - 1, step: 1 })) range.setAttribute(name, value);
      range.value = known.indexOf(this.coefficient);
      range.addEventListener("input", () => this.choose(known[Number(range.value)]));
    }
    this.coefficientInput = range;
    const label = make("label", {}, this.coefficientName, range);
    this.coefficientBox.replaceChildren(make("div", { class: "pair" }, label, ...(canSample ? [this.exact] : [])));
    this.nameCoefficient();
  }

  nameCoefficient() {
    if (!this.coefficientInput) return;
    const text = `Coefficient ${write(this.coefficient)}`;
    this.coefficientName.textContent = text;
    this.coefficientInput.setAttribute("aria-valuetext", text);
  }

  choose(coefficient) {
    this.coefficient = coefficient;
    this.nameCoefficient();
    if (this.cancel()) this.say("");
    if (this.find(coefficient)) return this.rebuildPanels();
    this.say(`Coefficient ${write(coefficient)} is about to be sampled …`);
    this.waiting = setTimeout(() => this.request({ type: "sample", coefficient }), 350); // not while it is being dragged
  }

  // Forgets what was about to be asked for, and says whether something was.
  cancel() {
    const wasWaiting = this.waiting !== null;
    clearTimeout(this.waiting);
    this.waiting = null;
    return wasWaiting;
  }

  find(coefficient) {
    return this.data.variants.find((one) => one.coefficient === coefficient);
  }

  // The kernel ---------------------------------------------------------------------------------------------------

  request(message) {
    this.cancel();
    this.underWay += 1;
    this.say("Asked the kernel …");
    this.stopButton.disabled = false;
    this.kernel.send(message);
  }

  // Takes what the kernel tells: a beginning, tokens as they come, an end or what went wrong.
  receive(message) {
    if (message.type === "begin") {
      const variant = { coefficient: message.coefficient, tokens: readTokens(message, this.data.nValues) };
      const variants = [...this.data.variants.filter((one) => message.known.includes(one.coefficient)), variant];
      variants.sort((a, b) => a.coefficient - b.coefficient);
      this.data = { ...this.data, roles: message.roles, variants };
      this.stopButton.disabled = false; // the end of what was broken off for it has disabled it
      this.say(`Sampling coefficient ${write(message.coefficient)} …`);
      this.rebuildPanels();
    } else if (message.type === "tokens") {
      const variant = this.find(message.coefficient);
      if (!variant) return;
      variant.tokens.push(...readTokens(message, this.data.nValues));
      this.rebuildPanels();
    } else if (message.type === "end") {
      this.finish();
      this.say(message.text);
    } else if (message.type === "error") {
      this.finish();
      this.update(this.kernel.read()); // in place of what had come of it
      this.say(message.text, true);
    }
  }

  finish() {
    this.stopButton.disabled = true;
    this.underWay = Math.max(0, this.underWay - 1);
    if (!this.find(this.coefficient)) this.update(this.kernel.read()); // it was broken off before its turn
  }

  update(payload) {
    this.data = readPayload(payload);
    const isAwaited = this.waiting !== null || this.underWay > 0;
    if (!isAwaited && !this.find(this.coefficient)) this.coefficient = this.data.variants.at(-1).coefficient;
    this.rebuild();
  }

  say(text, isWrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("wrong", isWrong);
  }

  // Tokens -------------------------------------------------------------------------------------------------------

  rebuild() {
    const { along, layer, model } = this.data;
    const steering = along ? `; steered along ${along} at layer ${layer}` : "";
    this.head.textContent = `${model}${steering}. Projections in residual-stream units.`;
    this.buildCoefficients();
    this.rebuildPanels();
  }

  rebuildPanels() {
    const kept = this.focused && { panel: Number(this.focused.dataset.panel), at: Number(this.focused.dataset.at) };
    const hadFocus = this.focused && this.root.getRootNode().activeElement === this.focused;
    const chosen = this.find(this.coefficient) ?? this.data.variants.at(-1);
    const plain = this.find(0);
    this.shown = plain && plain !== chosen ? [plain, chosen] : chosen ? [chosen] : [];
    this.spans = [];
    this.focused = null;
    this.panels.replaceChildren(...this.shown.map((variant, panel) => this.buildPanel(variant, panel)));
    const again = kept && this.spans[kept.panel]?.find((span) => Number(span.dataset.at) === kept.at);
    for (const spans of this.spans) if (spans.length) (spans.includes(again) ? again : spans[0]).tabIndex = 0;
    if (again) {
      this.focused = again;
      if (hadFocus) again.focus({ preventScroll: true });
    }
    this.colour();
  }

  buildPanel(variant, panel) {
    const name = nameVariant(variant);
    const box = make("div", { class: "tokens", role: "listbox", "aria-label": `${name}: tokens`, "aria-orientation": "horizontal" });
    const spans = [];
    let block = null;
    let turn = null;
    variant.tokens.forEach((token, at) => {
      if (token.turn < 0 && !this.withTemplate) return;
      if (token.turn !== turn || !block) {
        turn = token.turn;
        const added = variant.additions?.[turn];
        const role = turn < 0 ? "" : this.data.roles[turn] + (added ? `, steered: ${added}` : "");
        block = make("div", { class: turn < 0 ? "turn template" : "turn", role: "group", "aria-label": role || "chat template" });
        if (role) block.append(make("span", { class: "role", "aria-hidden": "true" }, role));
        box.append(block);
      }
      const span = make("span", { class: "token", role: "option", tabindex: -1, "data-panel": panel, "data-at": at });
      span.textContent = token.text === "" ? "·" : token.text.replaceAll("\n", "⏎\n");
      span.classList.toggle("steered", token.steered);
      block.append(span);
      spans.push(span);
    });
    this.spans.push(spans);
    return make("div", { class: "panel" }, make("h4", {}, name), box);
  }

  tokenOf(span) {
    return this.shown[Number(span.dataset.panel)]?.tokens[Number(span.dataset.at)];
  }

  colour() {
    const at = this.trait * this.data.n_layers + this.layer;
    this.scale = findScale(this.data, this.trait, this.layer);
    const threshold = this.data.thresholds[this.trait][this.layer];
    for (const span of this.spans.flat()) {
      const token = this.tokenOf(span);
      const value = token.values[at];
      paint(span, (value - this.scale.middle) / this.scale.farthest, this.isDark);
      span.classList.toggle("unusual", threshold !== null && value > threshold);
      span.setAttribute("aria-label", this.describe(token, value));
    }
    this.layerName.textContent = `Layer ${this.layer} of 0 to ${this.data.n_layers - 1}`;
    this.layerInput.setAttribute("aria-valuetext", `layer ${this.layer}`);
    this.drawLegend(threshold);
    this.point(this.focused);
    this.fillNumbers();
  }

  describe(token, value) {
    const distance = this.distance(this.trait, value);
    const far = distance === null ? "" : `, ${write(distance)} standard deviations from ordinary`;
    return `${token.text || "part of a character"}: projection ${write(value)}${far}${token.steered ? ", steered" : ""}`;
  }

  distance(trait, value) {
    const [mean, std] = [this.data.mean[trait][this.layer], this.data.std[trait][this.layer]];
    return mean === null || !std ? null : (value - mean) / std;
  }

  drawLegend(threshold) {
    const { middle, farthest } = this.scale;
    const bar = make("span", { class: "bar", role: "presentation" });
    bar.style.background = `linear-gradient(to right, rgb(${BLUE.join(",")}), var(--paper), rgb(${ORANGE.join(",")}))`;
    const trait = this.data.traits[this.trait];
    const name = this.data.mean[this.trait][this.layer] === null ? "this text's median" : "ordinary mean";
    this.legend.replaceChildren(
      `away from ${trait} ${write(middle - farthest)}`,
      bar,
      `${write(middle + farthest)} towards ${trait}; uncoloured: ${write(middle)}, ${name}`,
    );
    if (this.shown.some((one) => one.tokens.some((token) => token.steered))) {
      this.legend.append(make("span", { class: "key" }, "steered"));
    }
    if (threshold !== null) {
      this.legend.append(make("span", { class: "key unusual" }, `above ${write(threshold)}, 99 % of ordinary`));
    }
  }

  // Pointer and keys ---------------------------------------------------------------------------------------------

  point(target) {
    const span = target?.closest?.(".token");
    for (const one of this.root.querySelectorAll(".here")) one.classList.remove("here");
    if (!span) {
      const hint = "Point at a token, or move between tokens with the arrow keys, for its numbers.";
      return this.readout.replaceChildren(make("span", { class: "status" }, hint));
    }
    span.classList.add("here");
    const token = this.tokenOf(span);
    const rows = this.data.traits.map((name, trait) => {
      const value = token.values[trait * this.data.n_layers + this.layer];
      const distance = this.distance(trait, value);
      const threshold = this.data.thresholds[trait][this.layer];
      const far = distance === null ? "not known" : `${write(distance)} σ${value > threshold && threshold !== null ? ", unusual" : ""}`;
      return [name, write(value), far];
    });
    const role = token.turn < 0 ? "chat template" : this.data.roles[token.turn];
    const where = ` token ${Number(span.dataset.at)}, ${role}, layer ${this.layer}, ${token.steered ? "steered" : "not steered"}`;
    this.readout.replaceChildren(
      make("code", {}, token.text.replaceAll("\n", "⏎") || "part of a character"),
      where,
      makeTable(["trait", "projection", "distance from ordinary"], rows),
    );
  }

  focus(target) {
    if (!target.classList.contains("token")) return;
    for (const span of this.spans[Number(target.dataset.panel)]) {
      span.tabIndex = span === target ? 0 : -1;
      span.setAttribute("aria-selected", span === target);
    }
    this.focused = target;
    this.point(target);
  }

  move(event) {
    const span = event.target.closest(".token");
    if (!span || event.ctrlKey || event.altKey || event.metaKey) return;
    const spans = this.spans[Number(span.dataset.panel)];
    const at = spans.indexOf(span);
    const found = {
      ArrowRight: spans[at + 1],
      ArrowLeft: spans[at - 1],
      Home: spans[0],
      End: spans.at(-1),
      ArrowDown: event.key === "ArrowDown" && findBeside(spans.slice(at + 1), span, 1),
      ArrowUp: event.key === "ArrowUp" && findBeside(spans.slice(0, at).reverse(), span, -1),
    };
    if (!(event.key in found)) return;
    event.preventDefault();
    event.stopPropagation(); // else the notebook would move to another cell
    found[event.key]?.focus();
  }

  // The same numbers as a table, for those who do not see colours.
  fillNumbers() {
    for (const old of this.numbers.querySelectorAll(".scroll")) old.remove();
    if (!this.numbers.open) return;
    for (const variant of this.shown) {
      const name = nameVariant(variant).toLowerCase();
      const rows = variant.tokens
        .filter((token) => token.turn >= 0 || this.withTemplate)
        .map((token) => [
          token.text.replaceAll("\n", "⏎"),
          token.turn < 0 ? "template" : this.data.roles[token.turn],
          ...this.data.traits.map((_, trait) => write(token.values[trait * this.data.n_layers + this.layer])),
          token.steered ? "yes" : "no",
        ]);
      const table = makeTable(["token", "turn", ...this.data.traits, "steered"], rows);
      table.prepend(make("caption", {}, `Projections at layer ${this.layer}, ${name}`));
      this.numbers.append(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, table));
    }
  }

  // The kernel is gone: what was sampled stays.
  disconnect() {
    this.kernel = null;
    this.cancel();
    this.underWay = 0;
    if (!this.find(this.coefficient)) this.coefficient = this.data.variants.at(-1).coefficient;
    if (this.form) this.form.remove();
    this.say("The kernel is gone.");
    this.rebuild();
  }

  close() {
    this.watcher.disconnect();
    this.cancel();
    this.whenClosed?.();
  }
}

function nameVariant({ coefficient, additions }) {
  if (Object.keys(additions ?? {}).length) return "As it was said";
  return coefficient === 0 ? "Unsteered" : `Coefficient ${write(coefficient)}`;
}

function makeTable(head, rows) {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  return make("table", {}, make("thead", {}, line("th", head)), make("tbody", {}, ...rows.map((row) => line("td", row))));
}

// The token nearest in the next line of text up or down.
function findBeside(spans, from, direction) {
  const here = from.getBoundingClientRect();
  let line = null;
  let best = null;
  for (const span of spans) {
    const there = span.getClientRects()[0];
    if (!there || (there.top - here.top) * direction < 4) continue;
    if (line !== null && Math.abs(there.top - line) > 4) break;
    line = there.top;
    const distance = Math.abs(there.left - here.left);
    if (best === null || distance < best.distance) best = { span, distance };
  }
  return best?.span;
}

// Draws a conversation into an element, in place of what it shows already.
export function show(host, payload, kernel = null) {
  host.conversationView?.close();
  host.conversationView = new View(host, payload, kernel);
  return host.conversationView;
}

// Draws the pages of a key that are not drawn yet, and tells the kernel's side that they are there.
export function showPages(key) {
  for (const host of document.querySelectorAll(`[data-persona-lens="${key}"]`)) {
    if (!host.shadowRoot) show(host, JSON.parse(host.querySelector("script").textContent));
    host.dispatchEvent(new CustomEvent("persona-lens", { bubbles: true, detail: key }));
  }
}

// The kernel's side, as anywidget calls it. A notebook's output holds a page alone, so that it is there without a kernel
// too; where this model is, it takes the page of its key over, whichever of the two comes first.
function initialize({ model }) {
  const key = model.get("key");
  const taken = new Set();
  const take = (host) => {
    if (taken.has(host.conversationView)) return;
    taken.add(connect(host, model));
  };
  const hear = (event) => event.detail === key && take(event.target);
  document.addEventListener("persona-lens", hear);
  document.querySelectorAll(`[data-persona-lens="${key}"]`).forEach(take);
  return () => {
    document.removeEventListener("persona-lens", hear);
    for (const view of taken) view.disconnect();
  };
}

function render({ model, el }) {
  const view = connect(el, model);
  return () => view.close();
}

function connect(host, model) {
  const kernel = { send: (message) => model.send(message), read: () => model.get("payload") };
  const view = show(host, model.get("payload"), kernel);
  const update = () => view.update(model.get("payload"));
  const receive = (message) => view.receive(message);
  model.on("change:payload", update);
  model.on("msg:custom", receive);
  view.whenClosed = () => {
    model.off("change:payload", update);
    model.off("msg:custom", receive);
  };
  return view;
}

export default { initialize, render };
