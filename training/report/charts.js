// Charts of one figure each, a line a run and stage.
// Steps, or the share of its stage that was done, in percent.
const placesOf = (steps, settings) => (settings.aligned ? steps.map((step) => (100 * step) / steps[steps.length - 1]) : steps);

// The lines of a key as they are to be drawn now: hidden ones and, on a log scale, values that have no place are left out.
function linesOf(key, settings) {
  return data.tabs[state.tab].lines.flatMap(({ name, curves }, place) => {
    const curve = curves[key];
    if (!curve || state.hidden.has(name)) return [];
    const has = (value) => !settings.log || value > 0;
    const all = { place, name, steps: curve.x, x: placesOf(curve.x, settings), y: curve.y, low: curve.low ?? curve.y, high: curve.high ?? curve.y, isThinned: "low" in curve };
    const smooth = smoothed(all.y, settings.share);
    const kept = all.x.map((_, index) => index).filter((index) => has(all.low[index]) && has(smooth[index]));
    const take = (values) => kept.map((index) => values[index]);
    return kept.length ? [{ ...all, steps: take(all.steps), x: take(all.x), y: take(all.y), low: take(all.low), high: take(all.high), smooth: take(smooth), left: all.x.length - kept.length }] : [];
  });
}

function rangeOf(lines, settings) {
  let [low, high] = [Infinity, -Infinity];
  for (const line of lines) {
    for (const values of settings.raw ? [line.low, line.high] : [line.smooth]) {
      for (const value of values) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  if (low === high) return settings.log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const space = settings.log ? (high / low) ** 0.04 : (high - low) * 0.04;
  return settings.log ? [low / space, high * space] : [low >= 0 ? Math.max(0, low - space) : low - space, high + space];
}

const path = (xs, ys) => xs.map((x, place) => `${place ? "L" : "M"}${x.toFixed(1)} ${ys[place].toFixed(1)}`).join("");

function drawChart(figure, lines, [low, high], settings) {
  const svg = figure.querySelector("svg");
  const width = svg.clientWidth || 400;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  const first = Math.min(...lines.map((line) => line.x[0]));
  const last = Math.max(...lines.map((line) => line.x[line.x.length - 1]), first + 1);
  const toX = (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
  const scaled = settings.log ? Math.log : (value) => value;
  const toY = (value) => HEIGHT - MARGIN.bottom - ((scaled(value) - scaled(low)) / (scaled(high) - scaled(low))) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  for (const tick of settings.log ? logTicks(low, high) : stepsOf(low, high, 6)) {
    draw(svg, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: toY(tick), y2: toY(tick) });
    draw(svg, "text", { x: MARGIN.left - 6, y: toY(tick) + 4, "text-anchor": "end" }, show(tick));
  }
  for (const tick of stepsOf(first, last, Math.max(2, Math.min(6, width / 70))).filter(Number.isInteger)) {
    draw(svg, "text", { x: toX(tick), y: HEIGHT - 5, "text-anchor": toX(tick) > width - 30 ? "end" : "middle" }, `${tick.toLocaleString("en")}${settings.aligned ? " %" : ""}`);
  }
  for (const line of lines) drawLine(svg, line, toX, toY, settings);
  const cursor = draw(svg, "line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
  follow(figure, svg, cursor, lines, { toX, first, last, width });
}

function drawLine(svg, line, toX, toY, settings) {
  const xs = line.x.map(toX);
  const ys = (values) => values.map(toY);
  const pen = { stroke: colour(line.place), "stroke-dasharray": dash(line.place) };
  if (settings.raw && line.isThinned) {
    const outline = `${path(xs, ys(line.high))}L${path(xs.slice().reverse(), ys(line.low).reverse()).slice(1)}Z`;
    draw(svg, "path", { class: "band", d: outline, fill: colour(line.place) });
  }
  if (settings.raw && settings.share > 0) draw(svg, "path", { class: "raw", d: path(xs, ys(line.y)), stroke: colour(line.place) });
  draw(svg, "path", { class: "smooth", d: path(xs, ys(line.smooth)), ...pen });
  if (line.x.length <= 12) xs.forEach((x, place) => draw(svg, "circle", { cx: x, cy: toY(line.smooth[place]), r: 2.6, fill: colour(line.place) }));
}

// Shows the values of the point that is nearest to the pointer, of each line.
function follow(figure, svg, cursor, lines, { toX, first, last, width }) {
  const tip = figure.querySelector(".tip");
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width) * width - MARGIN.left;
    const step = first + (share / (width - MARGIN.left - MARGIN.right)) * (last - first);
    const rows = lines.map((line) => {
      const index = nearest(line.x, step);
      const span = line.isThinned ? `, ${show(line.low[index])} to ${show(line.high[index])}` : "";
      return { line, index, text: `${show(line.y[index])}${span}` };
    });
    const { line, index } = rows[0];
    cursor.setAttribute("x1", toX(line.x[index]));
    cursor.setAttribute("x2", toX(line.x[index]));
    cursor.setAttribute("visibility", "visible");
    tip.hidden = false;
    tip.replaceChildren(...rows.map((row) => {
      const dot = make("i");
      dot.style.background = colour(row.line.place);
      return make("div", {}, dot, row.text, make("span", {}, ` step ${row.line.steps[row.index].toLocaleString("en")}${lines.length > 1 ? `, ${row.line.name}` : ""}`));
    }));
    const isLeft = event.clientX - box.left > box.width / 2;
    tip.style.left = isLeft ? `${MARGIN.left + 8}px` : "auto";
    tip.style.right = isLeft ? "auto" : "12px";
  };
  svg.onpointerleave = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
}

function nearest(sorted, wanted) {
  let [low, high] = [0, sorted.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low > 0 && wanted - sorted[low - 1] < sorted[low] - wanted ? low - 1 : low;
}

function drawCharts() {
  const settings = { share: Number(at("smoothing").value), raw: at("raw").checked, log: at("log").checked, aligned: at("aligned").checked };
  let isThinned = false;
  for (const box of at("charts").querySelectorAll(".charts")) {
    const figures = [...box.children];
    const groups = figures.map((figure) => linesOf(figure.dataset.key, settings));
    const shared = box.dataset.shared === "true" ? rangeOf(groups.flat(), settings) : null;
    figures.forEach((figure, place) => {
      const lines = groups[place];
      isThinned ||= lines.some((line) => line.isThinned);
      const left = lines.reduce((sum, line) => sum + line.left, 0);
      const only = lines.length === 1 ? `last ${show(lines[0].y[lines[0].y.length - 1])}` : "";
      figure.querySelector("figcaption span").textContent = lines.length ? (left ? `without ${left} of 0 or less` : only) : settings.log ? "nothing above 0" : "hidden";
      if (lines.length) drawChart(figure, lines, shared ?? rangeOf(lines, settings), settings);
      else figure.querySelector("svg").replaceChildren();
    });
  }
  at("thinned").hidden = !isThinned;
}
