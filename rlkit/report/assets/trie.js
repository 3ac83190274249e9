// The trie of one user's candidates, where an engine searched for it: a column per level, a row per candidate.

const SAMPLER = { beam: "beam search", iid: "i.i.d. sampling", without_replacement: "sampling without replacement", ved: "value-guided search" };

const LETTER = 6.2; // width of a letter of a label

function searchLine(search) {
  const budget = search.budget ? ` of a budget of ${search.budget}` : "";
  const leaves = search.num_leaves ? ` (${plural(search.num_leaves, "whole answer")} for values)` : "";
  return `${SAMPLER[search.sampler] || search.sampler} · ${plural(search.num_charged, "token")} charged${budget}, ${search.num_evaluated} evaluated${leaves}, ${plural(search.num_forwards, "forward")} in sequence`;
}

/** Sibling credit of a node where it has some; the rest of its credit comes from whole candidates. */
function trieFacts(node) {
  const facts = [["node", node.texts ? node.texts.join("") : node.text], ["log-prob", show(node.logprobs?.[0])]];
  if (isNumber(node.search.value)) facts.push(["value V", show(node.search.value)]);
  if (isNumber(node.search.entropy)) facts.push(["entropy H", `${show(node.search.entropy)} nats`]);
  facts.push(["visits N", String(node.search.visits)], ["mean reward", isNumber(node.meanReward) ? show(node.meanReward) : "not valid"]);
  if (isNumber(node.sibling)) facts.push(["sibling advantage", signed(node.sibling)]);
  if (node.plus) facts.push(["credit C⁺ + C⁻", signed(meanCredit(node))]);
  facts.push(["likelihood alone", node.search.in_beam ? "kept it" : "pruned it"]);
  return facts;
}

/** The token, and what is known of it, most telling first: the end is cut where there is no room. */
function trieLabel(node) {
  if (node.index === 0) return "history";
  return [
    node.texts ? node.texts.join("") : String(node.ids[0]),
    isNumber(node.search?.value) ? `V ${show(node.search.value)}` : null,
    node.ends.length && isNumber(node.meanReward) ? `R ${show(node.meanReward)}` : null,
    isNumber(node.sibling) ? `A ${signed(node.sibling)}` : null,
    node.search?.visits ? `N ${node.search.visits}` : null,
  ].filter(Boolean).join(" ");
}

/** Mean total reward of the valid leaves below every node. */
function addMeanRewards(nodes) {
  const sums = nodes.map((node) => node.ends.filter((leaf) => isNumber(leaf.total)).map((leaf) => leaf.total));
  [...nodes].reverse().forEach((node) => {
    node.meanReward = sums[node.index].length ? sums[node.index].reduce((total, reward) => total + reward, 0) / sums[node.index].length : null;
    if (node.parent >= 0) sums[node.parent].push(...sums[node.index]);
  });
}

function trieView(tree, nodes, most, jump) {
  if (!tree.search) return null;
  addMeanRewards(nodes);
  const box = el("div", { class: "plot trie" });
  const rows = new Map(), columns = new Map();
  let count = 0;
  const place = (node, column) => {
    columns.set(node.index, column);
    const first = count;
    node.children.forEach((child) => place(child, column + 1));
    if (count === first) count += 1;
    rows.set(node.index, (first + count - 1) / 2);
  };
  place(nodes[0], 0);
  const levels = Math.max(...columns.values());
  const visits = Math.max(1, ...nodes.map((node) => node.search?.visits || 0));

  responsive(box, (width) => {
    const step = width / (levels + 1), pitch = Math.max(Math.min(26, TALL / count), 12);
    const x = (node) => columns.get(node.index) * step + 14, y = (node) => (rows.get(node.index) + 0.5) * pitch + 2;
    const root = svg("svg", { width, height: count * pitch + 4, role: "img", "aria-label": `trie of ${plural(tree.leaves.length, "candidate")}; ${searchLine(tree.search)}` });
    const size = Math.max(Math.floor((step - 24) / LETTER), 3);
    for (const node of nodes) {
      const hit = node.ends.some((leaf) => isNumber(leaf.total) && leaf.total > 0);
      const radius = node.search ? (hit ? 5 : 3) + 5 * Math.sqrt(node.search.visits / visits) : 5;
      const label = clip(trieLabel(node), size);
      const start = x(node) + radius + 8 + label.length * LETTER; // lines begin behind the label, not under it
      for (const child of node.children) {
        const from = Math.min(start, x(child) - 24), bend = (from + x(child)) / 2, pruned = child.search && !child.search.in_beam;
        root.append(svg("path", { class: `branch-line${pruned ? " pruned" : ""}`, d: `M${from},${y(node)}C${bend},${y(node)} ${bend},${y(child)} ${x(child)},${y(child)}` }));
      }
      const circle = svg("circle", { class: `knot${hit ? " hit" : ""}${node.search && !node.search.in_beam ? " pruned" : ""}`, cx: x(node), cy: y(node), r: radius, onclick: () => jump(node.index) },
        svg("title", {}, node.search ? trieFacts(node).map((fact) => fact.join(": ")).join("\n") : "the user's history"));
      if (node.author === "policy") circle.style.fill = tint(isNumber(node.sibling) ? node.sibling * most : meanCredit(node), most);
      root.append(circle, svg("text", { class: "tick", x: x(node) + radius + 4, y: y(node) + 4 }, label));
    }
    box.replaceChildren(root);
  });
  const pruned = nodes.some((node) => node.search && !node.search.in_beam);
  return el("figure", { class: "trie-figure" }, box, el("figcaption", { class: "quiet" }, searchLine(tree.search),
    ". V: value, R: reward, A: sibling advantage, N and area: visits. Colour: A, or credit where there are no siblings. Ring: a hit.",
    pruned ? " Dashed: outside the initial beam, likelihood alone had pruned it." : null));
}
