// What was said, token by token, on a ground that is orange towards a trait and blue away from it.
// All text goes in as text: nothing that a model or a person writes becomes markup.

import { paint } from "../conversation.js";

const NAMES = { user: "You", assistant: "Model", system: "System prompt" };

/** Keeps the tokens that are shown, and colours them anew when trait or layer change. */
export class Transcript {
  /**
   * @param {HTMLElement} log Where messages are put.
   * @param {(text: string) => void} say Shows the numbers of a token.
   */
  constructor(log, say) {
    this.log = log;
    this.say = say;
    this.messages = []; // {role, element, holder, tokens: [{text, projections, element}]}
    this.view = null; // {trait, index, layer, ordinary: mean of ordinary tokens or null}
    log.addEventListener("pointerover", (event) => this.#describe(event.target));
    log.addEventListener("focusin", (event) => this.#describe(event.target));
    log.addEventListener("keydown", (event) => this.#move(event));
  }

  clear() {
    for (const one of this.messages) one.element.remove();
    this.messages = [];
  }

  /** Add a message; its tokens may come later. */
  addMessage(role, tokens = []) {
    const element = document.createElement("article");
    element.className = `message ${role}`;
    const name = document.createElement("h3");
    name.textContent = NAMES[role] ?? role;
    const holder = document.createElement("div");
    holder.className = "tokens";
    element.append(name, holder);
    const message = { role, element, holder, tokens: [] };
    this.messages.push(message);
    this.log.append(element);
    for (const token of tokens) this.#append(message, token);
    return message;
  }

  addToken(message, token) {
    const isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    this.#append(message, token);
    if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  addNote(message, text) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = text;
    message.element.append(note);
  }

  remove(messages) {
    for (const one of messages) one.element.remove();
    this.messages = this.messages.filter((one) => !messages.includes(one));
  }

  /** Colour by a trait at a layer; returns the numbers at both ends of the scale. */
  show(view) {
    this.view = view;
    const { centre, reach } = this.#measure();
    for (const { tokens } of this.messages) {
      for (const token of tokens) {
        const value = this.#value(token);
        const strength = value === null ? 0 : (value - centre) / reach;
        paint(token.element, strength, false);
      }
    }
    return { low: centre - reach, high: centre + reach };
  }

  /** Return the mean over a message's tokens, or null. */
  mean(message, index, layer) {
    const values = message.tokens.map((one) => one.projections[index][layer]).filter((one) => one !== null);
    return values.length ? values.reduce((sum, one) => sum + one, 0) / values.length : null;
  }

  #append(message, { text, projections }) {
    const element = document.createElement("span");
    element.textContent = text;
    element.tabIndex = message.tokens.length ? -1 : 0;
    message.tokens.push({ text, projections, element });
    message.holder.append(element);
  }

  #value(token) {
    return token.projections[this.view.index][this.view.layer];
  }

  // Ordinary tokens say what is usual, where they were measured; else the chat's own median does.
  #measure() {
    const tokens = this.messages.flatMap((one) => one.tokens);
    const values = tokens.map((one) => this.#value(one)).filter((one) => one !== null).sort((a, b) => a - b);
    if (!values.length) return { centre: 0, reach: 1 };
    const centre = this.view.ordinary ?? values[values.length >> 1];
    return { centre, reach: Math.max(Math.abs(centre - values[0]), Math.abs(values[values.length - 1] - centre)) || 1 };
  }

  #find(element) {
    for (const message of this.messages) {
      const index = message.tokens.findIndex((one) => one.element === element);
      if (index >= 0) return { message, index };
    }
    return null;
  }

  #describe(element) {
    const found = this.view && this.#find(element);
    if (!found) return;
    const value = this.#value(found.message.tokens[found.index]);
    const shown = value === null ? "no direction there" : value.toFixed(2);
    const { trait, layer } = this.view;
    this.say(`Token ${found.index + 1}, “${found.message.tokens[found.index].text}”: ${trait} ${shown} at layer ${layer}`);
  }

  #move(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own, such as back
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const found = step && this.#find(event.target);
    if (!found) return;
    event.preventDefault();
    const { tokens } = found.message;
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, found.index + step))];
    tokens[found.index].element.tabIndex = -1;
    next.element.tabIndex = 0;
    next.element.focus();
  }
}
