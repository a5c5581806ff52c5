// Tabs, legend, confusion matrices, and what happens when the page opens.
function fillTab() {
  const tab = data.tabs[state.tab];
  [...at("tabs").children].forEach((button, place) => button.setAttribute("aria-pressed", place === state.tab));
  at("legend").replaceChildren(...tab.lines.map(({ name }, place) => legendButton(name, place)));
  at("charts").replaceChildren(...tab.groups.flatMap(([heading, keys, shared]) => {
    const box = make("div", { className: "charts" });
    box.dataset.shared = shared;
    box.append(...keys.map((key) => {
      const figure = make("figure", { className: "chart" }, make("figcaption", {}, key, make("span")));
      const svg = draw(figure, "svg", { role: "img" });
      svg.setAttribute("aria-label", `curves of ${key}`);
      figure.append(make("div", { className: "tip", hidden: true }));
      figure.dataset.key = key;
      return figure;
    }));
    return [make("h3", {}, heading), box];
  }));
  drawCharts();
}

function legendButton(name, place) {
  const button = make("button", { type: "button" });
  const swatch = draw(button, "svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
  draw(swatch, "line", { x1: 0, x2: 24, y1: 5, y2: 5, stroke: colour(place), "stroke-width": 3, "stroke-dasharray": dash(place) });
  button.append(name);
  button.setAttribute("aria-pressed", !state.hidden.has(name));
  button.addEventListener("click", () => {
    if (!state.hidden.delete(name)) state.hidden.add(name);
    button.setAttribute("aria-pressed", !state.hidden.has(name));
    drawCharts();
  });
  return button;
}

// Rows are true classes, columns what they were taken for; a cell's shade is its share of the row.
function drawMatrix(box, { names, cells }) {
  const seen = [...new Set(cells.flatMap(([row, column]) => [row, column]))].sort((one, other) => one - other);
  const place = new Map(seen.map((name, index) => [name, index]));
  const totals = new Map();
  for (const [row, , count] of cells) totals.set(row, (totals.get(row) ?? 0) + count);
  const isNamed = seen.length <= MAX_NAMED_CLASSES;
  const short = (name) => (name.length > 18 ? `${name.slice(0, 17)}…` : name);
  const longest = isNamed ? Math.max(...seen.map((name) => short(names[name]).length)) * 6.2 + 8 : 4;
  const isCounted = seen.length <= MAX_COUNTED_CLASSES;
  const fitting = Math.floor((box.clientWidth - longest * 1.75) / seen.length);
  const size = Math.max(isCounted ? 16 : isNamed ? 10 : 3, Math.min(24, fitting));
  const extent = seen.length * size;
  const full = { width: longest + extent + (isNamed ? longest * 0.75 : 4), height: longest * 0.85 + extent + 4 };
  const svg = draw(box, "svg", { ...full, viewBox: `0 0 ${full.width} ${full.height}`, role: "img", "aria-label": "confusion matrix" });
  const grid = draw(svg, "g", { transform: `translate(${longest} ${longest * 0.85})` });
  for (const [row, column, count] of cells) {
    const share = count / totals.get(row);
    const corner = { x: place.get(column) * size, y: place.get(row) * size };
    const cell = draw(grid, "rect", { ...corner, width: size, height: size, fill: `rgb(var(--cell) / ${(0.1 + 0.75 * share).toFixed(3)})` });
    draw(cell, "title", {}, `${names[row]} taken for ${names[column]}: ${count} of ${totals.get(row)}`);
    if (isCounted) draw(grid, "text", { class: "count", x: corner.x + size / 2, y: corner.y + size / 2 + 4 }, count);
  }
  draw(grid, "rect", { class: "frame", x: 0, y: 0, width: extent, height: extent });
  if (!isNamed) return;
  seen.forEach((name, index) => {
    const middle = (index + 0.5) * size;
    draw(draw(grid, "text", { x: -5, y: middle + 4, "text-anchor": "end" }, short(names[name])), "title", {}, names[name]);
    draw(grid, "text", { transform: `translate(${middle + 3} -5) rotate(-50)` }, short(names[name]));
  });
}

if (data.tabs.length) {
  at("curve-box").hidden = false;
  at("no-curves").hidden = true;
  at("tabs").append(...data.tabs.map(({ name }, place) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => { state.tab = place; fillTab(); });
    return button;
  }));
  for (const id of ["smoothing", "raw", "log", "aligned"]) at(id).addEventListener("change", drawCharts);
  fillTab();
  let known = at("charts").clientWidth;
  new ResizeObserver(() => {
    if (at("charts").clientWidth !== known) {
      known = at("charts").clientWidth;
      drawCharts();
    }
  }).observe(at("charts"));
}
for (const box of document.querySelectorAll("[data-matrix]")) drawMatrix(box, data.matrices[box.dataset.matrix]);
document.documentElement.dataset.ready = "true";
