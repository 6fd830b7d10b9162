// The page: sliders, questions, answers as they come, and what was read at each turn.

import { drawChart } from "./chart.js";
import { read, readLines, send } from "./server.js";
import { Transcript } from "./transcript.js";

const MEAN = "#0072B2", BEFORE = "#D55E00";
const at = (id) => document.getElementById(id);
const transcript = new Transcript(at("log"), (text) => { at("reading").textContent = text; });

let setup = null;
let chat = null; // its name at the server
let turns = []; // {asked, answer, before, readings, text}
let isBusy = false;
let isDrawing = false;

// Sliders ---------------------------------------------------------------------------------------------------------

function addSlider(trait) {
  const field = document.createElement("div");
  field.className = "slider";
  const label = document.createElement("label");
  label.htmlFor = `slide-${trait.name}`;
  label.append(`${trait.name} `);
  const where = document.createElement("small");
  const tried = trait.tried === null ? "" : `, tried at ${trait.tried.toFixed(2)}`;
  where.textContent = `layer ${trait.layer}${tried}`;
  label.append(where);
  const slide = Object.assign(document.createElement("input"), {
    type: "range", id: `slide-${trait.name}`, min: -trait.reach, max: trait.reach, step: 0.05, value: 0,
  });
  const number = Object.assign(document.createElement("input"), { type: "number", step: "any", value: 0 });
  number.setAttribute("aria-label", `${trait.name}, coefficient`);
  slide.addEventListener("input", () => { number.value = slide.value; });
  number.addEventListener("input", () => { slide.value = number.value || 0; });
  slide.addEventListener("dblclick", () => { slide.value = number.value = 0; });
  field.append(label, slide, number);
  at("sliders").append(field);
  trait.number = number;
  trait.slide = slide;
}

function listCoefficients() {
  return Object.fromEntries(setup.traits.map((one) => [one.name, Number(one.number.value) || 0]));
}

function describeSteering() {
  const acting = setup.traits.filter((one) => Number(one.number.value));
  if (!acting.length) return "unsteered";
  return `steered: ${acting.map((one) => `${one.name} × ${Number(one.number.value)} at layer ${one.layer}`).join(", ")}`;
}

// Colours and charts ----------------------------------------------------------------------------------------------

function findView() {
  const index = at("trait").selectedIndex;
  const trait = setup.traits[index];
  const layer = Number(at("layer").value);
  return { trait: trait.name, index, layer, ordinary: trait.ordinaryMean?.[layer] ?? null };
}

function colour() {
  const view = findView();
  at("layer-shown").value = view.layer;
  const { low, high } = transcript.show(view);
  at("scale-low").textContent = low.toFixed(1);
  at("scale-high").textContent = high.toFixed(1);
  at("scale").setAttribute("aria-label",
    `Blue is away from ${view.trait}, down to ${low.toFixed(1)}; orange is towards it, up to ${high.toFixed(1)}.`);
  isDrawing = false;
}

function colourSoon() {
  if (!isDrawing) requestAnimationFrame(colour);
  isDrawing = true;
}

function nameThresholds(thresholds, quantiles, what) {
  return thresholds.map((value, one) => ({
    value, name: `${Number((100 * quantiles[one]).toFixed(2))}% of ordinary ${what}`,
  }));
}

function chart() {
  const { trait, index, layer } = findView();
  const monitor = setup.traits[index].monitor;
  at("charts").replaceChildren();
  if (!turns.length) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Each answer adds a point.";
    at("charts").append(hint);
    return;
  }
  if (monitor) {
    const thresholds = nameThresholds(monitor.thresholds, monitor.quantiles, "prompts");
    const values = turns.map((one) => one.readings[trait]?.projection ?? null);
    at("charts").append(drawChart(`The monitor, before each answer: ${trait} at layer ${monitor.layer}. `
      + "Dashed: so many ordinary prompts lie below.",
      [{ name: "before", colour: BEFORE, hollow: true, values }], thresholds));
  }
  // What is ordinary for answers was measured at the monitor's layer alone.
  const answers = monitor?.layer === layer ? nameThresholds(monitor.answerThresholds, monitor.quantiles, "answers") : [];
  at("charts").append(drawChart(
    `Projection on ${trait} at layer ${layer}. Dots: mean over the answer's tokens. Squares: last prompt token, unsteered.`
      + (answers.length ? " Dashed: so many ordinary answers never get above." : ""),
    [
      { name: "answer", colour: MEAN, values: turns.map((one) => transcript.mean(one.answer, index, layer)) },
      { name: "before", colour: BEFORE, hollow: true, values: turns.map((one) => one.before[index][layer]) },
    ],
    answers,
  ));
}

// Asking ----------------------------------------------------------------------------------------------------------

async function ask(text) {
  const isAgain = text === "";
  const replaced = isAgain ? turns.pop() : null;
  const steering = describeSteering();
  const turn = { asked: [], answer: null, text: isAgain ? replaced.text : text };
  fail("");
  work(true);
  say("Reading the question …");
  let end = null;
  let n = 0;
  try {
    chat ??= (await (await send("api/chats", {})).json()).chat;
    const response = await send(`api/chats/${chat}/answers`, {
      text, coefficients: listCoefficients(), system: at("system").value,
      max_new_tokens: Number(at("max-new-tokens").value), temperature: Number(at("temperature").value),
      seed: Number(at("seed").value),
    });
    for await (const event of readLines(response)) {
      if (event.kind === "error") throw new Error(event.message);
      if (event.kind === "read") {
        if (replaced) transcript.remove([...replaced.asked, replaced.answer]);
        at("empty").hidden = true;
        turn.asked = event.messages.map((one) => transcript.addMessage(one.role, one.tokens));
        turn.answer = transcript.addMessage("assistant");
        Object.assign(turn, { before: event.before, readings: event.readings });
        at("log").scrollTop = at("log").scrollHeight;
        say("Answering …");
      } else if (event.kind === "token") {
        transcript.addToken(turn.answer, event);
        n += 1;
      } else {
        end = event;
      }
      colourSoon();
    }
    if (!end) throw new Error("The server ended before the answer did.");
  } catch (error) {
    fail(error.message);
  }
  if (end?.kept) {
    const ends = { stopped: "stopped", length: "as long as it may be", finished: "" }[end.reason];
    transcript.addNote(turn.answer, [steering, ends].filter(Boolean).join("; "));
    turns.push(turn);
    at("text").value = isAgain ? at("text").value : "";
    report(turn, n);
  } else {
    if (turn.answer) transcript.remove([...turn.asked, turn.answer]);
    if (replaced) restore(replaced, turn.answer !== null);
    say(end ? "The answer was empty; nothing was kept." : "");
  }
  work(false);
  colour();
  chart();
}

// An answer that was to be replaced stays where the new one did not come.
function restore(turn, wasRemoved) {
  turns.push(turn);
  if (!wasRemoved) return;
  for (const one of [...turn.asked, turn.answer]) {
    transcript.messages.push(one);
    at("log").append(one.element);
  }
}

function report(turn, n) {
  const { trait, index, layer } = findView();
  const mean = transcript.mean(turn.answer, index, layer);
  const alerts = Object.entries(turn.readings).filter(([, one]) => one.alert);
  const words = alerts.map(([name, one]) => `${name} above ${(100 * one.quantile).toFixed(0)}% of ordinary prompts`);
  say([`${n} tokens; ${trait} ${mean === null ? "–" : mean.toFixed(2)} on average at layer ${layer}.`,
    words.length ? `Before the answer: ${words.join(", ")}.` : ""].join(" "));
}

function work(busy) {
  isBusy = busy;
  at("send").disabled = at("new").disabled = busy;
  at("stop").disabled = !busy;
  at("again").disabled = busy || !turns.length;
  at("system").disabled = busy || turns.length > 0;
  at("log").setAttribute("aria-busy", String(busy));
  for (const [id, name] of [["export-json", "conversation.json"], ["export-page", "conversation.html"]]) {
    const isReady = !busy && turns.length > 0;
    at(id).setAttribute("aria-disabled", String(!isReady));
    if (isReady) at(id).href = `api/chats/${chat}/${name}`;
    else at(id).removeAttribute("href");
  }
}

function say(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("error").textContent = text;
}

// The page --------------------------------------------------------------------------------------------------------

function begin() {
  at("model").textContent = `· ${setup.model}`;
  for (const trait of setup.traits) {
    addSlider(trait);
    at("trait").append(new Option(trait.name));
  }
  at("layer").max = setup.nLayers - 1;
  at("layer").value = setup.traits[0].layer;
  at("max-new-tokens").value = setup.maxNewTokens;
  at("temperature").value = setup.temperature;
  at("seed").value = setup.seed;
  if (matchMedia("(max-width: 760px)").matches) at("drawing").open = at("turns").open = false;
  at("trait").addEventListener("change", () => {
    at("layer").value = setup.traits[at("trait").selectedIndex].layer;
    colour();
    chart();
  });
  at("layer").addEventListener("input", () => { colour(); chart(); });
  at("zero").addEventListener("click", () => {
    for (const one of setup.traits) one.slide.value = one.number.value = 0;
  });
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!isBusy && at("text").value.trim()) ask(at("text").value);
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      at("ask").requestSubmit();
    }
  });
  at("again").addEventListener("click", () => ask(""));
  at("stop").addEventListener("click", () => {
    say("Stopping …");
    send(`api/chats/${chat}/stop`, {}).catch((error) => fail(error.message));
  });
  at("new").addEventListener("click", () => {
    chat = null;
    turns = [];
    transcript.clear();
    at("empty").hidden = false;
    fail("");
    say("");
    work(false);
    colour();
    chart();
    at("text").focus();
  });
  work(false);
  colour();
  chart();
  at("text").focus();
}

try {
  setup = await read("api/setup");
  begin();
} catch (error) {
  fail(error.message);
}
