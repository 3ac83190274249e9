// Charts in SVG, drawn at the pixel size they have, so lines stay crisp and text keeps its size on any screen.

const MARGIN = { left: 48, right: 12, top: 8, bottom: 20 };
const SMOOTH_FROM = 80; // from so many points on, a moving average is drawn over the raw line
const listeners = []; // one per chart: called with the step under the pointer, or null

let pointed = null;
function point(step) {
  if (step === pointed) return;
  pointed = step;
  requestAnimationFrame(() => listeners.forEach((listener) => listener(pointed)));
}

/** A round number that divides `width` into about `count` parts. */
function tickSize(width, count) {
  const raw = width / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
}

/** Round numbers in [low, high], about `count` of them. */
function ticks(low, high, count) {
  const size = tickSize(high - low, count);
  const first = Math.ceil(low / size - 1e-9);
  const last = Math.floor(high / size + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * size);
}

/** Labels with just the digits that tell neighbouring ticks apart. */
function tickLabels(values) {
  const size = values.length > 1 ? values[1] - values[0] : Math.abs(values[0]) || 1;
  const most = Math.max(...values.map(Math.abs));
  if (most >= 1e4 || size < 1e-4) return values.map(show);
  const digits = [0, 1, 2, 3, 4, 5].find((count) => Math.abs(size * 10 ** count - Math.round(size * 10 ** count)) < 1e-6) ?? 6;
  return values.map((value) => minus(value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })));
}

/** What a chart must hold, widened to round numbers; starts at 0 where 0 is near anyway. */
function domain(values) {
  if (!values.length) return [0, 1];
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (high - low < 1e-9 * Math.max(Math.abs(high), 1e-3)) {
    const middle = Math.abs(high) < 1e-12 ? 0 : high;
    [low, high] = middle === 0 ? [0, 1] : [middle - Math.abs(middle) * 0.1, middle + Math.abs(middle) * 0.1];
  }
  if (low >= 0 && low < 0.6 * high) low = 0;
  const size = tickSize(high - low, 3);
  return [Math.floor(low / size + 1e-9) * size, Math.ceil(high / size - 1e-9) * size];
}

/** Centred mean over `width` points; null where the point itself is missing. */
function movingMean(values, width) {
  const half = Math.floor(width / 2);
  return values.map((value, index) => {
    if (!isNumber(value)) return null;
    const near = values.slice(Math.max(0, index - half), index + half + 1).filter(isNumber);
    return near.reduce((total, item) => total + item, 0) / near.length;
  });
}

/** SVG path through the points; a missing value breaks the line. */
function path(xs, ys) {
  let out = "";
  let pen = "M";
  xs.forEach((x, index) => {
    if (!isNumber(ys[index])) { pen = "M"; return; }
    out += `${pen}${x.toFixed(1)},${ys[index].toFixed(1)}`;
    pen = "L";
  });
  return out;
}

function nearest(steps, step) {
  let best = 0;
  steps.forEach((candidate, index) => { if (Math.abs(candidate - step) < Math.abs(steps[best] - step)) best = index; });
  return best;
}

const FIRST_WIDTH = 640; // pixels; drawn at once, so a page that is printed or dumped before its first layout has its charts

/** Calls `draw(width)` now and whenever the width of `box` changes. */
function responsive(box, draw) {
  let last = FIRST_WIDTH;
  draw(last);
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) { last = width; requestAnimationFrame(() => draw(width)); }
  }).observe(box);
}

/** Horizontal grid lines with their numbers. */
function levels(values, y, width) {
  const labels = tickLabels(values);
  return values.flatMap((value, index) => [
    svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 3.5, "text-anchor": "end" }, labels[index]),
  ]);
}

/** One chart with its title, its definition behind the title, and the numbers at the pointed step. */
function lineChart(chart, span) {
  const box = el("div", { class: "plot" });
  const read = el("div", { class: "read" });
  const about = Object.entries(chart.about).filter(([, text]) => text && text !== "-");
  const figure = el("figure", { class: "chart" },
    el("figcaption", {},
      el("details", {},
        el("summary", {}, chart.title),
        el("dl", { class: "about" }, about.map(([key, text]) => [el("dt", {}, key), el("dd", {}, text)]),
          el("dt", {}, "logged as"), el("dd", {}, el("code", {}, chart.name), chart.unit ? `, in ${chart.unit}` : ""))),
      read),
    box);
  let mark = () => {};

  function readout(step) {
    const parts = chart.series.map((series, order) => {
      const index = step === null ? series.values.findLastIndex(isNumber) : nearest(series.steps, step);
      if (index < 0) return null;
      const band = series.low ? range(series.low[index], series.high[index]) : "";
      return [
        chart.series.length > 1 ? el("span", { class: `key c${order}` }, series.label) : null,
        el("b", {}, show(series.values[index])), band ? el("span", { class: "band" }, band) : null,
      ];
    });
    read.replaceChildren(...parts.flat(2).filter(Boolean));
  }

  function draw(width) {
    const height = 150;
    const held = chart.series.flatMap((series) => [...series.values, ...(series.low || []), ...(series.high || [])]);
    const [low, high] = domain(held.filter(isNumber));
    const inner = width - MARGIN.left - MARGIN.right;
    const x = (step) => MARGIN.left + (span[1] === span[0] ? inner / 2 : ((step - span[0]) / (span[1] - span[0])) * inner);
    const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const root = svg("svg", {
      width, height, tabindex: 0, role: "img", "aria-label": describe(chart),
      onpointermove: (event) => point(stepAt(event.clientX)),
      onpointerleave: () => point(null),
      onblur: () => point(null),
      onkeydown: (event) => keys(event),
    });
    root.append(...levels(ticks(low, high, 3), y, width));
    const marks = ticks(span[0], span[1], Math.max(2, Math.round(inner / 110))).filter(Number.isInteger);
    for (const tick of span[0] === span[1] ? [span[0]] : marks) {
      root.append(svg("text", { class: "tick", x: x(tick), y: height - 4, "text-anchor": "middle" }, show(tick)));
    }
    chart.series.forEach((series, order) => root.append(...drawSeries(series, order, x, y, height)));
    const at = svg("text", { class: "tick at", y: height - 4, "text-anchor": "middle" });
    const cursor = svg("g", { visibility: "hidden" },
      svg("line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom }),
      svg("rect", { class: "patch", x: -24, width: 48, y: height - MARGIN.bottom + 3, height: MARGIN.bottom }), at);
    const dots = chart.series.map((_, order) => svg("circle", { class: `dot c${order}`, r: 3.5, visibility: "hidden" }));
    root.append(cursor, ...dots);
    box.replaceChildren(root);

    const steps = chart.series[0].steps;
    const stepAt = (clientX) => {
      const share = (clientX - root.getBoundingClientRect().left - MARGIN.left) / inner;
      return steps[nearest(steps, span[0] + share * (span[1] - span[0]))];
    };
    const keys = (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Escape") point(null);
      if (move === undefined) return;
      event.preventDefault();
      const from = pointed === null ? steps.length : nearest(steps, pointed);
      const to = steps[Math.min(Math.max(from + move, 0), steps.length - 1)];
      point(to);
      say(`step ${to}: ${chart.series.map((series) => `${series.label} ${show(series.values[nearest(series.steps, to)])}`).join(", ")}`);
    };
    mark = (step) => {
      cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
      if (step !== null) {
        const own = steps[nearest(steps, step)];
        cursor.setAttribute("transform", `translate(${x(own)},0)`);
        at.textContent = own.toLocaleString("en-US");
      }
      chart.series.forEach((series, order) => {
        const index = step === null ? -1 : nearest(series.steps, step);
        const shown = index >= 0 && isNumber(series.values[index]);
        dots[order].setAttribute("visibility", shown ? "visible" : "hidden");
        if (shown) { dots[order].setAttribute("cx", x(series.steps[index])); dots[order].setAttribute("cy", y(series.values[index])); }
      });
    };
    mark(pointed);
  }

  readout(null);
  listeners.push((step) => { readout(step); mark(step); });
  responsive(box, draw);
  return figure;
}

function drawSeries(series, order, x, y, height) {
  const xs = series.steps.map(x);
  const ys = series.values.map((value) => (isNumber(value) ? y(value) : null));
  const out = [];
  if (series.low?.some(isNumber)) {
    const inside = series.steps.map((_, index) => index).filter((index) => isNumber(series.low[index]) && isNumber(series.high[index]));
    const upper = inside.map((index) => `${xs[index].toFixed(1)},${y(series.high[index]).toFixed(1)}`);
    const lower = inside.map((index) => `${xs[index].toFixed(1)},${y(series.low[index]).toFixed(1)}`).reverse();
    out.push(svg("polygon", { class: `area c${order}`, points: [...upper, ...lower].join(" ") }));
  }
  const smooth = series.values.length >= SMOOTH_FROM;
  out.push(svg("path", { class: `line c${order}${smooth ? " raw" : ""}`, d: path(xs, ys) }));
  if (smooth) {
    const mean = movingMean(series.values, smoothWidth(series)).map((value) => (isNumber(value) ? y(value) : null));
    out.push(svg("path", { class: `line c${order}`, d: path(xs, mean) }));
  }
  if (series.values.length <= 30) {
    xs.forEach((at, index) => { if (isNumber(ys[index])) out.push(svg("circle", { class: `dot c${order}`, cx: at, cy: ys[index], r: 2 })); });
  }
  xs.forEach((at, index) => {
    if (!isNumber(ys[index])) out.push(svg("text", { class: "lost", x: at, y: height - MARGIN.bottom - 2, "text-anchor": "middle" }, "×"));
  });
  return out;
}

const smoothWidth = (series) => Math.max(5, 2 * Math.floor(series.values.length / 50) + 1);

function describe(chart) {
  const ends = chart.series.map((series) => {
    const found = series.values.map((value, index) => [series.steps[index], value]).filter(([, value]) => isNumber(value));
    if (!found.length) return `${series.label}: never a finite number`;
    const [[first, a], [last, b]] = [found[0], found.at(-1)];
    return `${series.label}: ${show(a)} at step ${first}, ${show(b)} at step ${last}`;
  });
  return `${chart.title}. ${ends.join("; ")}. Left and right arrows move along the steps.`;
}

/** Seconds of each phase per step as stacked bars; neighbouring steps are averaged where bars would be too thin. */
function timeChart(time) {
  const box = el("div", { class: "plot" });
  const read = el("div", { class: "read" });
  const wholes = time.steps.map((_, index) => time.phases.reduce((total, phase) => total + phase.seconds[index], 0));

  function readout(from, to) {
    const label = from === undefined ? "mean step" : from === to ? `step ${time.steps[from]}` : `steps ${time.steps[from]}–${time.steps[to]}, mean`;
    const [a, b] = from === undefined ? [0, time.steps.length - 1] : [from, to];
    const mean = (values) => values.slice(a, b + 1).reduce((total, value) => total + value, 0) / (b - a + 1);
    read.replaceChildren(el("span", { class: "at" }, label), el("b", {}, seconds(mean(wholes))),
      ...time.phases.map((phase) => el("span", { class: `swatch p-${phase.name}` }, `${phase.name} ${seconds(mean(phase.seconds))}`)));
  }

  function draw(width) {
    const height = 190;
    const inner = width - MARGIN.left - MARGIN.right;
    const size = Math.ceil(time.steps.length / Math.max(1, Math.floor(inner / 5)));
    const bars = [];
    for (let from = 0; from < time.steps.length; from += size) bars.push([from, Math.min(from + size, time.steps.length) - 1]);
    const mean = (values, [from, to]) => values.slice(from, to + 1).reduce((total, value) => total + value, 0) / (to - from + 1);
    const high = Math.max(...bars.map((bar) => mean(wholes, bar)), 1e-9) * 1.05;
    const y = (value) => height - MARGIN.bottom - (value / high) * (height - MARGIN.top - MARGIN.bottom);
    const pitch = Math.min(inner / bars.length, 48);
    const root = svg("svg", { width, height, role: "img", "aria-label": "Seconds per step by phase; the table below has the totals." });
    root.append(...levels(ticks(0, high, 4), y, width));
    bars.forEach((bar, order) => {
      let base = 0;
      const group = svg("g", { onpointerenter: () => readout(...bar), onpointerleave: () => readout() });
      const left = MARGIN.left + order * pitch;
      group.append(svg("rect", { class: "hit", x: left, y: MARGIN.top, width: pitch, height: height - MARGIN.top - MARGIN.bottom }));
      for (const phase of time.phases) {
        const value = mean(phase.seconds, bar);
        group.append(svg("rect", { class: `bar p-${phase.name}`, x: left + 0.5, width: Math.max(pitch - 1, 1), y: y(base + value), height: Math.max(y(base) - y(base + value), 0) }));
        base += value;
      }
      root.append(group);
    });
    const every = Math.ceil(bars.length / Math.max(2, inner / 90));
    bars.forEach((bar, order) => {
      if (order % every === 0) root.append(svg("text", { class: "tick", x: MARGIN.left + (order + 0.5) * pitch, y: height - 4, "text-anchor": "middle" }, show(time.steps[bar[0]])));
    });
    box.replaceChildren(root);
  }

  readout();
  responsive(box, draw);
  return el("figure", { class: "chart wide" }, el("figcaption", {}, el("span", { class: "title" }, "Seconds per step"), read), box);
}
