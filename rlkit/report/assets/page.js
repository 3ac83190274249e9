// The page from top to bottom.

const steps = DATA.sections.flatMap((section) => section.charts.flatMap((chart) => chart.series.flatMap((series) => series.steps)));
const SPAN = steps.length ? [Math.min(...steps), Math.max(...steps)] : [0, 1];

const slug = (title) => title.toLowerCase().replaceAll(" ", "-");

function section(title, ...content) {
  return el("section", { class: "part", id: slug(title), "aria-labelledby": `h-${slug(title)}` }, el("h2", { id: `h-${slug(title)}` }, title), content);
}

function table(head, rows) {
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head.map((cell) => el("th", { scope: "col" }, cell)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, order) => (order ? el("td", {}, cell) : el("th", { scope: "row" }, cell))))))));
}

function header() {
  const { name, facts, recipe } = DATA.about;
  return el("header", { class: "top" },
    el("p", { class: "brand" }, "rlkit run"), el("h1", {}, name),
    el("dl", { class: "facts" }, facts.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, value)))),
    recipe === null ? null : el("details", { class: "recipe" }, el("summary", {}, "Resolved recipe"), el("pre", { tabindex: 0 }, recipe)),
    DATA.notes.length ? el("ul", { class: "notes" }, DATA.notes.map((note) => el("li", {}, note))) : null);
}

/** Start (hollow) and end (filled) with their intervals on one axis. */
function intervals(row) {
  const box = el("div", { class: "plot" });
  const ends = [row.start, row.end].filter((end, order) => order === 0 || end.step !== row.start.step);
  const known = ends.flatMap((end) => [end.value, end.low, end.high]).filter(isNumber);
  const unit = known.every((value) => value >= 0 && value <= 1);
  const [low, high] = unit ? [0, 1] : domain([...known, 0]);
  responsive(box, (width) => {
    const x = (value) => 8 + ((value - low) / (high - low)) * (width - 16);
    const root = svg("svg", { width, height: 46, "aria-hidden": "true" });
    for (const tick of ticks(low, high, 4)) {
      root.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 2, y2: 32 }),
        svg("text", { class: "tick", x: x(tick), y: 44, "text-anchor": "middle" }, show(tick)));
    }
    ends.forEach((end, order) => {
      const y = ends.length === 1 ? 17 : 10 + order * 14;
      const last = order === ends.length - 1;
      if (isNumber(end.low)) root.append(svg("line", { class: "whisker", x1: x(end.low), x2: x(end.high), y1: y, y2: y }));
      root.append(svg("circle", { class: last ? "end" : "start", cx: x(end.value), cy: y, r: 4 }));
    });
    box.replaceChildren(root);
  });
  return box;
}

function overlap({ start, end }) {
  if (start.step === end.step || ![start.low, start.high, end.low, end.high].every(isNumber)) return "";
  return start.high < end.low || end.high < start.low ? "intervals are apart" : "intervals overlap";
}

function results() {
  const { rows, held_out: heldOut } = DATA.results;
  if (!rows.length) return null;
  const title = heldOut ? "Held-out results" : "Training reward";
  const lead = heldOut ? "First and last evaluation on held-out tasks, with 95 % intervals. The task is the unit."
    : "First and last training step. These are rollouts that the run trained on, not held-out tasks.";
  return section(title, el("p", { class: "lead" }, lead), el("div", { class: "results" }, rows.map((row) => {
    const same = row.start.step === row.end.step;
    const value = (end) => el("span", { class: "reading" }, el("b", {}, show(end.value)), el("small", {}, range(end.low, end.high)), el("small", {}, `step ${end.step}`));
    const size = isNumber(row.end.n) ? `n = ${show(row.end.n)}` : null;
    return el("div", { class: "result" }, el("h3", {}, row.label),
      el("div", { class: "readings" }, same ? value(row.end) : [value(row.start), el("span", { class: "arrow", "aria-label": "to" }, "→"), value(row.end)]),
      intervals(row), el("p", { class: "quiet" }, size, el("span", {}, overlap(row))));
  })));
}

function curves() {
  if (!DATA.sections.length) return null;
  const narrow = matchMedia("(max-width: 560px)").matches; // a phone starts with what matters most
  const long = DATA.sections.some(({ charts }) => charts.some(({ series }) => series.some(({ values }) => values.length >= SMOOTH_FROM)));
  return section("Curves", el("p", { class: "lead" }, "Against optimizer steps. A chart's title opens its definition.",
    long ? " Pale: each step. Strong: moving mean." : null, " × marks a step whose number was not finite."),
    DATA.sections.map(({ title, charts }, order) => el("details", { class: "group", open: order < 2 || !narrow },
      el("summary", {}, el("h3", {}, title), el("span", { class: "quiet" }, plural(charts.length, "chart"))),
      el("div", { class: "charts" }, charts.map((chart) => lineChart(chart, SPAN))))));
}

function timePart() {
  const { time } = DATA;
  if (!time.phases.length) return null;
  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  const whole = total(time.phases.map((phase) => total(phase.seconds)));
  return section("Time", timeChart(time), table(["phase", "total", "share", "mean step"], time.phases.map((phase) => [
    el("span", { class: `swatch p-${phase.name}` }, phase.name), seconds(total(phase.seconds)), percent(total(phase.seconds) / whole),
    seconds(total(phase.seconds) / time.steps.length)])));
}

function ledger() {
  const book = DATA.ledger;
  if (!book) return null;
  const parts = ["trained", "pending", "dropped"].map((name) => [name, book[name]]);
  const balanced = book.missing === 0;
  return section("Ledger", el("p", { class: balanced ? "lead" : "lead bad" }, balanced
    ? `Every one of the ${plural(book.drawn, "task")} drawn is accounted for.`
    : `Does not balance: ${plural(book.drawn, "task")} drawn, ${show(Math.abs(book.missing))} ${book.missing > 0 ? "unaccounted for" : "counted twice"}.`),
    el("div", { class: "stack", "aria-hidden": "true" }, parts.map(([name, value]) => {
      const bar = el("i", { class: `l-${name}` });
      bar.style.flexGrow = String(Math.max(value, 0));
      return bar;
    })),
    table(["tasks", "number", "share of drawn"], [
      ...parts.map(([name, value]) => [el("span", { class: `swatch l-${name}` }, name), show(value), book.drawn ? percent(value / book.drawn) : "–"]),
      ...book.reasons.map(([name, value]) => [el("span", { class: "why" }, `dropped: ${name}`), show(value), book.drawn ? percent(value / book.drawn) : "–"])]));
}

function failuresPart() {
  if (!DATA.failures.length) return null;
  return section("Failures", el("p", { class: "lead" }, "A failure is recorded as one, never as a reward of 0. Reasons are counted in the stored rollouts."),
    table(["what", "share", "worst step", "reasons"], DATA.failures.map((row) => [
      row.what, row.share === null ? "–" : row.share ? percent(row.share) : "never", row.worst && row.worst[1] ? `${percent(row.worst[1])} at step ${row.worst[0]}` : "–", row.why])));
}

function rolloutsPart() {
  const { groups, note } = DATA.rollouts;
  if (!groups.length) return section("Rollouts", el("p", { class: "lead" }, "No rollouts were stored."));
  const view = el("div", { "aria-live": "off" });
  const choose = (label, options, onchange) => {
    const select = el("select", { onchange }, options.map((text, index) => el("option", { value: index }, text)));
    return { select, field: el("label", {}, el("span", {}, label), select) };
  };
  const short = (text) => (text.length > 70 ? `${text.slice(0, 69)}…` : text);
  const taskNames = (group) => group.trees.map(({ task }) => `${short(task.id)}: ${short(task.question)}`);
  const hasText = groups.some((group) => group.trees.some((tree) => tree.nodes.some((node) => node.texts)));
  const step = choose("step", groups.map((group) => group.label), () => {
    const names = taskNames(groups[step.select.value]);
    task.select.replaceChildren(...names.map((text, index) => el("option", { value: index }, text)));
    draw();
  });
  const task = choose("task", taskNames(groups[0]), () => draw());
  const mode = choose("show", hasText ? ["tokens", "text"] : ["text", "token ids"], () => draw());
  const draw = () => {
    hideTip();
    const asText = (mode.select.value === "1") === hasText;
    view.replaceChildren(treeView(groups[step.select.value].trees[task.select.value], asText));
  };
  const lastTrained = groups.findLastIndex((group) => group.label.startsWith("step "));
  step.select.value = String(Math.max(lastTrained, 0));
  step.select.dispatchEvent(new Event("change"));
  return section("Rollouts", el("p", { class: "lead" },
    "Each tree is one task; what trajectories share is drawn once. In the map, width is tokens and height is leaves. Hover or focus a token for its numbers.", note ? ` ${note}` : null),
    el("div", { class: "choices" }, step.field, task.field, mode.field), view);
}

const parts = [results(), curves(), timePart(), ledger(), failuresPart(), rolloutsPart()].filter(Boolean);
const links = parts.map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
document.getElementById("page").replaceChildren(header(), el("nav", { "aria-label": "Parts of the report" }, links),
  el("main", { id: "content" }, parts), el("footer", {}, "Made by rlkit from metrics.jsonl and the stored rollouts; nothing on this page is loaded from elsewhere."));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
