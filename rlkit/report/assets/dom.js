"use strict";
// Elements and numbers. All text goes through text nodes: rollout text is untrusted and never becomes markup.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element: `el("p", {class: "x", onclick: f}, "text", child, [more])`; null children are left out. */
function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** Tell a screen reader; only for what a key press has changed. */
function say(text) {
  document.getElementById("live").textContent = text;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits: 0.0412, 12.3, 1,234, 10.2k; a dash where there is no number. */
function show(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size < 1e-12) return "0"; // rounding noise of a sum that is 0
  if (size >= 1e9) return `${trim(value / 1e9)}G`;
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  if (size >= 100) return Math.round(value).toLocaleString("en-US");
  if (size < 1e-3) return minus(value.toExponential(1).replace(".0e", "e"));
  return trim(value);
}

const minus = (text) => text.replaceAll("-", "−");
const trim = (value) => minus(Number(value.toPrecision(3)).toString());
const signed = (value) => (value > 0 ? `+${show(value)}` : show(value));
const percent = (value) => (value > 0 && value < 0.001 ? "< 0.1 %" : `${trim(value * 100)} %`);
const plural = (count, word) => `${count.toLocaleString("en-US")} ${word}${count === 1 ? "" : "s"}`;
const range = (low, high) => (isNumber(low) && isNumber(high) ? `[${show(low)}, ${show(high)}]` : "");

function seconds(value) {
  if (value >= 5400) return `${trim(value / 3600)} h`;
  return value >= 120 ? `${trim(value / 60)} min` : `${trim(value)} s`;
}
