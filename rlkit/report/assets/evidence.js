"use strict";
// What an answer cites, and the walk over the graph that found its evidence.

const VERDICT = {
  evidence: ["✓", "in the evidence"], alive: ["●", "approved and alive"],
  unchecked: ["?", "approved, not checked"], invented: ["✗", "invented, unapproved or dead"],
};

/** The answer with a mark and a colour on every URL. */
function citedAnswer(leaf) {
  if (!leaf.parts) return leaf.answer;
  return leaf.parts.map(([text, verdict]) => !verdict ? text
    : el("span", { class: `url ${verdict}`, title: VERDICT[verdict][1] }, `${VERDICT[verdict][0]} ${text}`));
}

function verdictLegend(tree) {
  const seen = new Set(tree.leaves.flatMap((leaf) => (leaf.parts || []).map(([, verdict]) => verdict)));
  const shown = Object.keys(VERDICT).filter((verdict) => seen.has(verdict));
  return shown.length ? el("p", { class: "legend" }, "URLs: ",
    shown.map((verdict) => el("span", { class: `url ${verdict}` }, `${VERDICT[verdict][0]} ${VERDICT[verdict][1]}`))) : null;
}

const clip = (text, size) => (text.length > size ? `${text.slice(0, size - 1)}…` : text);

/** Columns from left to right: entities of the question, their neighbours, passages; filled ones became evidence. */
function walkView(walk) {
  if (!walk) return null;
  const box = el("div", { class: "plot walk" });
  const last = Math.max(0, ...walk.entities.map(([, level]) => level)) + 1;
  const columns = Array.from({ length: last + 1 }, () => []);
  walk.entities.forEach(([name, level]) => columns[level].push({ key: `e ${name}`, name, kind: "entity" }));
  walk.passages.forEach(([name, , used]) => columns[last].push({ key: `p ${name}`, name, kind: used ? "passage used" : "passage" }));
  const tall = Math.max(...columns.map((column) => column.length));
  responsive(box, (width) => {
    const step = width / columns.length, pitch = 22, places = new Map();
    columns.forEach((column, index) => column.forEach((node, row) =>
      places.set(node.key, { ...node, x: index * step + 8, y: (row + 0.5) * pitch * (tall / column.length) + 2 })));
    const root = svg("svg", { width, height: tall * pitch + 4, role: "img", "aria-label": `walk from ${plural(columns[0].length, "entity").replace("entitys", "entities")} to ${plural(walk.passages.length, "passage")}` });
    const size = Math.max(Math.floor(step / 7.5) - 3, 4);
    const line = (from, to, label) => {
      if (!from || !to) return;
      const left = Math.min(from.x + 8 + clip(from.name, size).length * 6.6, to.x - 6), middle = (left + to.x) / 2;
      root.append(svg("path", { class: "walked", d: `M${left},${from.y}C${middle},${from.y} ${middle},${to.y} ${to.x - 5},${to.y}` }, svg("title", {}, label)));
    };
    walk.edges.forEach(([from, relation, to]) => line(places.get(`e ${from}`), places.get(`e ${to}`), `${from} ${relation} ${to}`));
    walk.passages.forEach(([name, entity]) => line(places.get(`e ${entity}`), places.get(`p ${name}`), `${name} speaks of ${entity}`));
    for (const node of places.values()) {
      root.append(svg("circle", { class: node.kind, cx: node.x, cy: node.y, r: 4 }),
        svg("text", { class: "tick", x: node.x + 8, y: node.y + 4 }, clip(node.name, size), svg("title", {}, node.name)));
    }
    box.replaceChildren(root);
  });
  return el("details", { open: true }, el("summary", {}, "Evidence graph: entities of the question, neighbours, passages (filled: shown to the policy)"),
    box, walk.version ? el("p", { class: "quiet" }, `index version ${walk.version}`) : null);
}
