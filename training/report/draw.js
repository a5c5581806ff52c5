"use strict";
// What charts and matrices are made with: elements, numbers as text, ticks. One scope with charts.js and page.js.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const NUM_COLOURS = 8;
const DASHES = ["", "6 3", "2 3"];
const HEIGHT = 184;
const MARGIN = { left: 50, right: 10, top: 8, bottom: 20 };
const MAX_NAMED_CLASSES = 60;
const MAX_COUNTED_CLASSES = 25;
const state = { tab: 0, hidden: new Set() };

// Text from data only ever becomes text: nothing here writes HTML.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function draw(parent, tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== "") element.textContent = text;
  parent.append(element);
  return element;
}

const colour = (place) => `var(--c${place % NUM_COLOURS})`;
const dash = (place) => DASHES[Math.floor(place / NUM_COLOURS) % DASHES.length];
const show = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4))));

// A running mean over a share of the stage's points, each as wide as the others; shorter at both ends.
function smoothed(values, share) {
  const reach = Math.floor((values.length * share) / 2);
  if (reach < 1) return values;
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, place) => {
    const near = Math.min(reach, place, values.length - 1 - place);
    return (sums[place + near + 1] - sums[place - near]) / (2 * near + 1);
  });
}

function stepsOf(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const ticks = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high * (1 + 1e-9) + step * 1e-9; place++) ticks.push(place * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of [1, 2, 5]) ticks.push(factor * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  const powers = inside.filter((tick) => Number.isInteger(Number(Math.log10(tick).toFixed(9))));
  if (inside.length <= 6) return inside.length > 1 ? inside : stepsOf(low, high, 6);
  return powers.length > 1 ? powers.filter((_, place) => place % Math.ceil(powers.length / 6) === 0) : inside.slice(0, 6);
}
