// The circuit of a step: the strongest edges of the consensus, layers from bottom to top. Heads
// stand in the columns of the layer x head grid, so that a head keeps its place at every step.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, children = []) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Edges that pass the reader's filters, strongest first; `passing` counts them before the cut.
function edgesOnView(run, view) {
  const inRange = node => node.kind === "embed" || node.kind === "logits" ||
    (view.low <= node.layer && node.layer <= view.high);
  const isHead = node => node.kind === "head" || node.kind === "kv";
  const passing = edgesAt(run, view.cursor).filter(edge => edge.share >= view.share - 0.003)
    .map(edge => ({...edge, from: sourceNode(run, edge.source),
      to: destinationNode(run, edge.destination)}))
    .filter(edge => inRange(edge.from) && inRange(edge.to) &&
      (view.through === "all" || isHead(edge.from) || isHead(edge.to)));
  return {shown: passing.slice(0, view.edges), passing: passing.length};
}

function circuitLayout(run, view, width) {
  const left = 42, top = 40, layers = view.high - view.low + 1;
  const tall = Math.max(11, Math.min(38, 760 / layers)), wide = (width - left - 14) /
    (run.heads + 1.9);
  const bottom = top + tall * layers + 14;
  const y = layer => top + (view.high - layer + 0.5) * tall;
  const places = {
    head: node => [left + (node.index + 0.5) * wide, y(node.layer)],
    kv: node => [left + (node.index + 0.5) * groupSize(run) * wide, y(node.layer) + tall * 0.36],
    mlp: node => [left + (run.heads + 0.85) * wide, y(node.layer)],
  };
  const place = (node, other) => {
    if (node.kind === "embed") return [other[0], bottom];
    if (node.kind === "logits") return [other[0], top - 14];
    return places[node.kind](node);
  };
  return {left, top, bottom, tall, wide, width, y, place, height: bottom + 22,
    label: wide >= 40 && tall >= 17};
}

function drawCircuit(holder, run, view, palette, on) {
  const {shown, passing} = edgesOnView(run, view);
  const layout = circuitLayout(run, view, widths.get(holder));
  const picture = shape("svg", {width: layout.width, height: layout.height, role: "group",
    "aria-label": "circuit of this step"});
  const strongest = shown.length ? shown[0].strength : 1;
  const nodes = new Map();
  const edges = shape("g", {fill: "none"});
  for (const edge of shown.slice().reverse()) {
    edges.append(edgePath(run, edge, layout, strongest, palette));
    for (const node of [edge.from, edge.to]) nodes.set(node.name, node);
  }
  picture.append(circuitFrame(run, view, layout, palette), groupLines(run, nodes, layout, palette),
    edges, ...[...nodes.values()].filter(node => layout.place(node, [0])[0])
      .map(node => nodeMark(run, node, view, layout, palette, on)));
  holder.replaceChildren(picture);
  return {shown, passing};
}

function circuitFrame(run, view, layout, palette) {
  const parts = [], text = (x, y, content, anchor) => {
    const element = shape("text", {x, y, fill: palette.soft, "text-anchor": anchor,
      "dominant-baseline": "central"});
    element.textContent = content;
    parts.push(element);
  };
  const right = layout.width - 10;
  const down = Math.max(1, Math.ceil(13 / layout.tall));
  for (let layer = view.low; layer <= view.high; layer++) {
    parts.push(shape("line", {x1: layout.left, x2: right, y1: layout.y(layer), y2: layout.y(layer),
      stroke: palette.line}));
    if ((layer - view.low) % down === 0) text(layout.left - 6, layout.y(layer), "L" + layer, "end");
  }
  const across = Math.max(1, Math.ceil(26 / layout.wide));
  for (let head = 0; head < run.heads; head += across) {
    text(layout.left + (head + 0.5) * layout.wide, 8, "H" + head, "middle");
  }
  text(layout.left + (run.heads + 0.85) * layout.wide, 8, "MLP", "middle");
  for (const [y, name] of [[layout.top - 14, "logits"], [layout.bottom, "embed"]]) {
    parts.push(shape("line", {x1: layout.left, x2: right, y1: y, y2: y, stroke: palette.soft,
      "stroke-width": 3, "data-name": name}));
    text(layout.left - 3, y, name, "end");
  }
  return shape("g", {"font-size": 11.5}, parts);
}

function edgePath(run, edge, layout, strongest, palette) {
  const first = layout.place(edge.from, [0, 0]), to = layout.place(edge.to, first);
  const [x1, y1] = layout.place(edge.from, to), [x2, y2] = to;
  const part = Math.sqrt(edge.strength / strongest), rise = Math.max((y1 - y2) * 0.45, 9);
  const bow = Math.abs(x1 - x2) < 1 ? bowOf(edge, layout, y1 - y2) : 0;
  const path = shape("path", {
    d: "M" + [x1, y1, "C", x1 + bow, y1 - rise, x2 + bow, y1 === y2 ? y2 - rise : y2 + rise,
      x2, y2].join(" "),
    stroke: edge.balance < 0 ? palette.minus : palette.plus,
    "stroke-width": (0.8 + 4.2 * part).toFixed(2), "stroke-opacity": (0.35 + 0.6 * part).toFixed(2),
    "data-from": edge.from.name, "data-to": edge.to.name, "data-tip": edgeText(run, edge),
  });
  return path;
}

// Edges of one column would lie on each other: the longer, the wider the bow; between MLPs to the
// left, where there is room.
function bowOf(edge, layout, rise) {
  if (edge.from.kind === "mlp" && edge.to.kind === "mlp") {
    return -Math.min(layout.width * 0.7, 12 + rise * 0.6);
  }
  return Math.min(layout.wide * 0.6, 6 + rise * 0.06);
}

const edgeText = (run, edge) => edge.from.name + " \u2192 " + inputName(edge.to) +
  "\nmean |score| " + scoreText(edge.strength) + ", signed " +
  scoreText(edge.strength * edge.balance) + "\nkept by " + shareText(run, edge.share) + " probes";

// From the shared keys and values of a group to those of its heads that are drawn.
function groupLines(run, nodes, layout, palette) {
  const lines = [];
  for (const node of nodes.values()) {
    if (node.kind !== "kv") continue;
    const [x1, y1] = layout.place(node);
    for (let i = 0; i < groupSize(run); i++) {
      const head = nodes.get("L" + node.layer + "H" + (node.index * groupSize(run) + i));
      if (!head) continue;
      const [x2, y2] = layout.place(head);
      lines.push(shape("line", {x1, y1, x2, y2, stroke: palette.soft, "stroke-dasharray": "2 2"}));
    }
  }
  return shape("g", {}, lines);
}

function nodeMark(run, node, view, layout, palette, on) {
  if (node.kind === "embed" || node.kind === "logits") return shape("g", {});
  const [x, y] = layout.place(node), row = node.layer * run.heads + node.index;
  const isHead = node.kind === "head";
  const fill = isHead ? headColour(run, row, palette) : palette.soft;
  const group = shape("g", {class: "node", "data-name": node.name, "data-tip": node.name +
    (isHead ? ", " + kindText(run, row) + "\n" + stateLine(run, view.cursor, row) : node.kind === "kv" ? ", keys and values of " +
    groupSize(run) + " heads" : "")});
  if (node.kind === "kv" || !layout.label) {
    const size = node.kind === "kv" ? Math.min(3.5, layout.tall * 0.16) :
      Math.max(2, Math.min(6, layout.wide * 0.4, layout.tall * 0.38));
    group.append(shape("rect", {x: x - size, y: y - size, width: 2 * size, height: 2 * size,
      rx: node.kind === "head" ? size : 1, fill}));
  } else {
    const text = shape("text", {x, y: y + 0.5, fill: palette.paper, "text-anchor": "middle",
      "dominant-baseline": "central", "font-size": 10.5});
    text.textContent = node.name;
    const half = 6 + node.name.length * 3.1;
    group.append(shape("rect", {x: x - half, y: y - 7.5, width: 2 * half, height: 15, rx: 4, fill}),
      text);
  }
  if (!isHead) return group;
  if (isUndecided(run, view.cursor, row)) {
    Object.entries({stroke: palette.ink, "stroke-width": 2, "stroke-dasharray": "3 2"})
      .forEach(([key, value]) => group.firstChild.setAttribute(key, value));
  }
  if (row === view.head) {
    group.firstChild.setAttribute("stroke", "#e69f00");
    group.firstChild.setAttribute("stroke-width", 2.5);
  }
  group.setAttribute("tabindex", 0);
  group.setAttribute("role", "button");
  group.setAttribute("aria-label", "head " + node.name);
  group.addEventListener("click", () => on.head(row));
  group.addEventListener("keydown", event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    on.head(row);
  });
  return group;
}

// Hovering a node leaves only its edges in full ink; the pointer's tip names what it is over.
function listenToCircuit(holder, showTip) {
  const light = name => {
    for (const path of holder.querySelectorAll("path")) {
      path.classList.toggle("dim", name !== null && path.dataset.from !== name &&
        path.dataset.to !== name);
    }
  };
  holder.addEventListener("pointermove", event => {
    const over = event.target.closest("[data-tip]");
    showTip(event, over ? over.dataset.tip : "");
    const node = event.target.closest("[data-name]");
    light(node ? node.dataset.name : null);
  });
  holder.addEventListener("pointerleave", () => {
    showTip(null, "");
    light(null);
  });
}

function fillCircuitTable(table, run, shown, on) {
  const names = ["from", "to", "|score|", "signed", "probes"];
  const heading = names.map((text, i) => make("th", {class: i < 2 ? "text" : "", scope: "col",
    text}));
  const body = shown.map(edge => make("tr", {}, [
    make("td", {class: "text"}, [nodeButton(run, edge.from, on)]),
    make("td", {class: "text"}, [nodeButton(run, edge.to, on)]),
    make("td", {text: scoreText(edge.strength)}),
    make("td", {text: scoreText(edge.strength * edge.balance)}),
    make("td", {text: shareText(run, edge.share)})]));
  table.replaceChildren(make("thead", {}, [make("tr", {}, heading)]), make("tbody", {}, body));
}
