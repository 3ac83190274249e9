// One rollout tree: a map (width: tokens, height: leaves) and, below it, its nodes in depth-first order.

const CLAMP = 140; // longer prompts and observations are folded
const STATUS = { done: "●", truncated: "◐", failed: "✕" };
const ROW = 18; // pixels of a leaf in the map
const TALL = 720; // a map of more leaves than fit in so many pixels gets thinner rows, without labels
const DEEP = 5; // from so many branchings on, indentation is only hinted at

/** Children, leaves below, and first token of every node. */
function layout(tree) {
  const nodes = tree.nodes.map((node, index) => ({ ...node, index, children: [], ends: [], below: 0, start: 0 }));
  nodes.forEach((node) => {
    if (node.parent < 0) return;
    nodes[node.parent].children.push(node);
    node.start = nodes[node.parent].start + nodes[node.parent].size;
  });
  tree.leaves.forEach((leaf) => nodes[leaf.node].ends.push(leaf));
  [...nodes].reverse().forEach((node) => {
    node.below = node.ends.length + node.children.reduce((total, child) => total + child.below, 0);
  });
  return nodes;
}

/** Largest absolute credit of a token, the end of the colour scale. */
function creditScale(tree) {
  let most = 0;
  for (const node of tree.nodes) node.plus?.forEach((plus, index) => { most = Math.max(most, Math.abs(plus + node.minus[index])); });
  return most;
}

const meanCredit = (node) => (node.plus ? node.plus.reduce((total, plus, index) => total + plus + node.minus[index], 0) / node.plus.length : 0);

/** Background of a token of this credit: blue above 0, orange below; CSS holds both colours for light and dark. */
function tint(credit, most) {
  if (!most || !credit) return "var(--policy)";
  const strength = Math.round(14 + 46 * Math.min(Math.abs(credit) / most, 1));
  return `color-mix(in oklab, var(${credit > 0 ? "--plus" : "--minus"}) ${strength}%, transparent)`;
}

function treeMap(nodes, most, jump) {
  const box = el("div", { class: "plot map" });
  const rows = new Map();
  let count = 0;
  const place = (node) => {
    const first = count;
    const slots = node.ends.map((leaf) => ({ leaf, row: count++ }));
    node.children.forEach(place);
    if (count === first) count += 1;
    rows.set(node.index, { first, last: count, slots });
  };
  place(nodes[0]);
  const pitch = Math.max(Math.min(ROW, TALL / count), 2);
  const labelled = pitch >= 11;

  responsive(box, (width) => {
    const labels = !labelled ? 0 : width < 560 ? 84 : 150;
    const end = Math.max(...nodes.map((node) => node.start + node.size));
    const prompt = nodes[0].size;
    // A long prompt would leave no room for what was sampled: it then gets a quarter, drawn with a break.
    const broken = prompt > end / 4 && prompt < end;
    const wide = width - labels - 2;
    const x = (token) => !broken ? (token / end) * wide
      : token <= prompt ? (token / prompt) * wide * 0.25
      : wide * (0.25 + 0.75 * (token - prompt) / (end - prompt));
    const root = svg("svg", { width, height: count * pitch + 2, "aria-hidden": "true" });
    for (const node of nodes) {
      const { first, last, slots } = rows.get(node.index);
      const [left, right] = [x(node.start), x(node.start + node.size)];
      const rect = svg("rect", {
        class: `block ${node.author}`, x: left + 0.5, y: first * pitch + 1.5, rx: labelled ? 2 : 0,
        width: Math.max(right - left - 1.5, 1.5), height: Math.max((last - first) * pitch - (labelled ? 2 : 0.5), 1), onclick: () => jump(node.index),
      }, svg("title", {}, `${node.author}, ${plural(node.size, "token")}, on the path of ${plural(node.below, "leaf").replace("leafs", "leaves")}`));
      if (node.author === "policy") rect.style.fill = tint(meanCredit(node), most);
      root.append(rect);
      if (broken && node.index === 0) {
        const middle = (left + right) / 2;
        root.append(svg("path", { class: "break", d: `M${middle - 5},0l4,${count * pitch + 2}h6l-4,-${count * pitch + 2}z` }));
      }
      for (const { leaf, row } of labelled ? slots : []) {
        const text = isNumber(leaf.total) ? show(leaf.total) : leaf.status === "failed" ? "failed" : "no reward";
        root.append(svg("line", { class: "lead-line", x1: right + 1, x2: wide + 4, y1: (row + 0.5) * pitch + 0.5, y2: (row + 0.5) * pitch + 0.5 }),
          svg("text", { class: `tick leaf-label${isNumber(leaf.total) ? "" : " bad"}`, x: wide + 8, y: (row + 0.5) * pitch + 4 }, `${STATUS[leaf.status]} ${labels > 84 ? `sample ${leaf.sample}  ` : ""}${text}`));
      }
    }
    box.replaceChildren(root);
  });
  return box;
}

/** A token as people can read it: line ends are shown and kept, control characters get their picture. */
function visible(text) {
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥").replace(/[\u0000-\u0009\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
}

function tokenFacts(node, index) {
  const facts = [["token", node.texts ? JSON.stringify(node.texts[index]) : "text was not stored"], ["id", String(node.ids[index])]];
  if (node.logprobs) {
    const value = node.logprobs[index];
    facts.push(["log-prob", isNumber(value) ? `${minus(value.toFixed(3))}  (p = ${trim(Math.exp(value))})` : "not finite"]);
  }
  if (node.plus) {
    facts.push(["credit", signed(node.plus[index] + node.minus[index])], ["C⁺, C⁻", `${signed(node.plus[index])}, ${signed(node.minus[index])}`]);
  }
  if (node.author === "policy") facts.push(["version", String(node.version)], ["temperature", show(node.temperature)]);
  if (node.kept) facts.push(["drawn from", plural(node.kept[index], "token")]);
  return facts;
}

const tip = document.getElementById("tip");
function showTip(node, index, token) {
  tip.replaceChildren(el("dl", {}, tokenFacts(node, index).map(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])));
  tip.hidden = false;
  const place = token.getClientRects()[0] || token.getBoundingClientRect();
  const left = Math.min(Math.max(place.left, 8), document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = place.top > tip.offsetHeight + 12;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above ? place.top - tip.offsetHeight - 6 : place.bottom + 6) + scrollY}px`;
}
function hideTip() { tip.hidden = true; }

function tokens(node, most) {
  const spans = node.ids.map((id, index) => {
    const credit = node.plus ? node.plus[index] + node.minus[index] : 0;
    const sign = credit > 0 ? " plus" : credit < 0 ? " minus" : "";
    const text = node.texts ? visible(node.texts[index]) : String(id);
    const span = el("span", { class: `token${sign}${text ? "" : " empty"}${node.texts ? "" : " id"}`, "data-index": index }, text || `‹${id}›`);
    if (sign) span.style.background = tint(credit, most);
    return span;
  });
  let active = -1;
  const activate = (index) => {
    spans[active]?.classList.remove("active");
    active = index;
    if (active < 0) { hideTip(); return; }
    spans[active].classList.add("active");
    spans[active].scrollIntoView({ block: "nearest" });
    showTip(node, active, spans[active]);
    say(tokenFacts(node, active).map((fact) => fact.join(" ")).join(", "));
  };
  const hovered = (event) => event.target.closest?.("[data-index]");
  return el("div", {
    class: "tokens", tabindex: 0, role: "group", "aria-label": `${plural(node.size, "token")} by ${node.author}; left and right arrows read them one by one`,
    onpointerover: (event) => { const token = hovered(event); if (token) showTip(node, Number(token.dataset.index), token); },
    onpointerleave: hideTip,
    onblur: () => activate(-1),
    onkeydown: (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Escape") activate(-1);
      if (move === undefined) return;
      event.preventDefault();
      activate(Math.min(Math.max(active + move, 0), spans.length - 1));
    },
  }, spans, node.size > node.ids.length ? el("em", {}, ` … ${plural(node.size - node.ids.length, "more token")} not in this page`) : null);
}

function nodeBlock(node, total, most, asText) {
  const body = asText ? el("div", { class: "tokens plain" }, node.text || "no text was stored") : tokens(node, most);
  const facts = [plural(node.size, "token")];
  if (node.author !== "prompt") facts.unshift(`turn ${node.turn + 1}`);
  if (node.author === "policy") facts.push(`version ${node.version}`);
  if (node.below > 1) facts.push(`shared by ${node.below} of ${total}`);
  if (node.plus) facts.push(`mean credit ${signed(meanCredit(node))}`);
  const block = el("section", { class: `node ${node.author}`, id: `node-${node.index}`, tabindex: -1 },
    el("header", {}, el("b", {}, node.author), el("span", {}, facts.join(" · "))), body);
  if (node.author !== "policy" && node.size > CLAMP) {
    body.classList.add("clamped");
    const more = el("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => {
      const open = !body.classList.toggle("clamped");
      more.setAttribute("aria-expanded", String(open));
      more.textContent = open ? "fold" : `show all ${plural(node.size, "token")}`;
    } }, `show all ${plural(node.size, "token")}`);
    block.append(more);
  }
  block.append(...node.ends.map(leafBlock));
  return block;
}

function leafBlock(leaf) {
  const terms = leaf.terms.map((term) => el("li", { class: term.status === "ok" ? "" : "bad" },
    el("span", {}, term.name, term.weight === 1 ? null : ` × ${show(term.weight)}`),
    el("b", {}, term.status === "ok" ? show(term.value) : term.status)));
  const sums = [["total", isNumber(leaf.total) ? show(leaf.total) : "not valid"], ["advantage", isNumber(leaf.advantage) ? signed(leaf.advantage) : "none"]];
  const signals = Object.entries(leaf.signals).map(([name, value]) => `${name.replaceAll("_", " ")} ${show(value)}`);
  return el("div", { class: `leaf ${leaf.status}` },
    el("p", {}, el("span", { class: "badge" }, `${STATUS[leaf.status]} ${leaf.status}`), ` sample ${leaf.sample}`, leaf.reason ? `: ${leaf.reason}` : "",
      el("span", { class: "answer" }, leaf.answer === null ? "no answer" : ["answer ", el("q", {}, citedAnswer(leaf))])),
    el("ul", {}, terms, sums.map(([name, value]) => el("li", { class: "sum" }, el("span", {}, name), el("b", {}, value)))),
    signals.length ? el("p", { class: "quiet" }, signals.join(" · ")) : null);
}

/** A chain of single children stays in one column; only a branching indents. */
function outline(node, total, most, asText, depth = 1) {
  const column = [];
  let current = node;
  while (current) {
    column.push(nodeBlock(current, total, most, asText));
    if (current.children.length > 1) {
      column.push(el("div", { class: `branches${depth > DEEP ? " deep" : ""}` }, current.children.map((child, order) =>
        el("div", { class: "branch", role: "group", "aria-label": `branch ${order + 1} of ${current.children.length}` }, outline(child, total, most, asText, depth + 1)))));
    }
    current = current.children.length === 1 ? current.children[0] : null;
  }
  return column;
}

function legend(most) {
  const scale = most ? el("span", { class: "scale" }, show(-most), el("i", {}), signed(most)) : null;
  return el("p", { class: "legend" },
    el("span", { class: "token sample prompt" }, "prompt"), el("span", { class: "token sample environment" }, "environment"),
    el("span", { class: "token sample" }, most ? "policy, no credit" : "policy"), most ? ["policy by credit C⁺ + C⁻ ", scale] : null);
}

/** Everything about one tree. */
function treeView(tree, asText) {
  const nodes = layout(tree);
  const most = creditScale(tree);
  const total = plural(tree.leaves.length, "leaf").replace("leafs", "leaves");
  const jump = (index) => {
    const block = document.getElementById(`node-${index}`);
    block.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    block.focus({ preventScroll: true });
  };
  return el("div", { class: "tree" },
    el("p", { class: "question" }, tree.task.question),
    el("p", { class: "quiet" }, tree.task.answers.length ? ["accepted: ", tree.task.answers.join(" | "), " · "] : null,
      `${total} · ${plural(tree.unique, "unique token")} for ${tree.flat.toLocaleString("en-US")} flat (${trim(tree.flat / tree.unique)} ×)`),
    legend(most), verdictLegend(tree), walkView(tree.walk), trieView(tree, nodes, most, jump) || treeMap(nodes, most, jump),
    el("div", { class: "outline" }, outline(nodes[0], total, most, asText)));
}
