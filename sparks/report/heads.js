// Views of one checkpoint or one head: the layer x head grid, its colour scale, the head's strip.

function drawGrid(holder, run, view, palette) {
  const room = widths.get(holder.parentElement);
  const left = 30, bottom = 20;
  const cell = {
    width: Math.max(3, Math.min(32, Math.floor((room - left - 2) / run.heads))),
    height: Math.max(5, Math.min(20, Math.round(520 / run.layers))),
  };
  const {pen} = sheet(holder, cell.height * run.layers + bottom + 4,
    left + cell.width * run.heads + 4);
  const grid = {left, top: 2, cell};
  const unscored = view.colour !== "frequency" && run.unscoredAt.has(view.cursor);
  const gap = cell.width >= 8 && cell.height >= 7 ? 2 : cell.width >= 5 ? 1 : 0;
  const outlined = view.colour !== "importance";  // black on dark blue would not be seen
  const grey = unscored ? hatch(pen, palette) : null;
  for (let row = 0; row < run.rows; row++) {
    const [x, y] = cellCorner(run, grid, row);
    pen.globalAlpha = dimmed(run, row, view) ? 0.22 : 1;
    pen.fillStyle = grey || cssColour(cellColour(run, palette, view.colour, view.cursor, row));
    pen.fillRect(x, y, cell.width - gap, cell.height - gap);
    if (outlined && isActive(run, run.times - 1, row)) outline(pen, x, y, cell, gap, palette);
  }
  pen.globalAlpha = 1;
  labelGrid(pen, run, grid, palette);
  if (view.head !== null) ring(pen, run, grid, view.head, palette);
  return grid;
}

const cellCorner = (run, grid, row) => [
  grid.left + (row % run.heads) * grid.cell.width,
  grid.top + Math.floor(row / run.heads) * grid.cell.height,
];

// "Ever active" hides nothing here: a head that never was is an empty cell.
function dimmed(run, row, view) {
  const show = view.show === "ever" ? "all" : view.show;
  return !inLayers(run, row, view) || !FILTERS[show](run, row);
}

function outline(pen, x, y, cell, gap, palette) {
  pen.strokeStyle = pen.fillStyle = palette.mark;
  if (gap < 2) {
    pen.fillRect(x, y, Math.max(1, cell.width - gap), 1);
    return;
  }
  pen.lineWidth = 1.5;
  pen.strokeRect(x + 0.75, y + 0.75, cell.width - gap - 1.5, cell.height - gap - 1.5);
  pen.lineWidth = 1;
}

function ring(pen, run, grid, row, palette) {
  const [x, y] = cellCorner(run, grid, row);
  pen.lineWidth = 2.5;
  pen.strokeStyle = palette.paper;
  pen.strokeRect(x - 1, y - 1, grid.cell.width, grid.cell.height);
  pen.lineWidth = 2;
  pen.strokeStyle = "#e69f00";
  pen.strokeRect(x - 1.5, y - 1.5, grid.cell.width + 1, grid.cell.height + 1);
  pen.lineWidth = 1;
}

function labelGrid(pen, run, grid, palette) {
  const {cell} = grid;
  pen.fillStyle = palette.soft;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  const down = Math.max(1, Math.ceil(13 / cell.height));
  for (let layer = 0; layer < run.layers; layer += down) {
    pen.fillText("L" + layer, grid.left - 6, grid.top + (layer + 0.5) * cell.height - 1);
  }
  pen.textAlign = "center";
  const across = Math.max(1, Math.ceil(28 / cell.width));
  const y = grid.top + run.layers * cell.height + 9;
  for (let head = 0; head < run.heads; head += across) {
    pen.fillText("H" + head, grid.left + (head + 0.5) * cell.width - 1, y);
  }
}

function headInGrid(run, grid, x, y) {
  const head = Math.floor((x - grid.left) / grid.cell.width);
  const layer = Math.floor((y - grid.top) / grid.cell.height);
  if (head < 0 || head >= run.heads || layer < 0 || layer >= run.layers) return null;
  return layer * run.heads + head;
}

// -- colour scale -------------------------------------------------------------------------------

function drawScale(holder, run, view, palette) {
  const ramps = {
    frequency: () => [
      ["base head", part => usageColour(palette, true, part, true), "silent", "all probes"],
      ["emergent head", part => usageColour(palette, false, part, true), "silent", "all probes"],
    ],
    importance: () => [["square root", cividis, "0", percent(run.importance_max)]],
    mean: () => [["mean, 0 in the middle", part => effectColour(palette, 2 * part - 1),
      "\u22121 gone", "+1 new"]],
    effect: () => [["0 in the middle", part => effectColour(palette, 2 * part - 1),
      "\u22121 gone", "+1 new"]],
  }[view.colour]();
  holder.replaceChildren(...ramps.map(([name, colour, low, high]) =>
    make("div", {class: "ramp"}, [make("span", {text: name}), make("span", {text: low}),
      rampPicture(colour), make("span", {text: high})])));
}

function rampPicture(colour) {
  const canvas = document.createElement("canvas"), width = 90, ratio = 2;
  canvas.width = width * ratio;
  canvas.height = 11 * ratio;
  canvas.style.width = width + "px";
  canvas.style.height = "11px";
  const pen = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    pen.fillStyle = cssColour(colour(x / (canvas.width - 1)));
    pen.fillRect(x, 0, 1, canvas.height);
  }
  return canvas;
}

const GRID_CAPTIONS = {
  frequency: "Red: base heads, fading as fewer probes use them; blue: emergent heads, deeper as " +
    "more do; outlined: active at the last checkpoint; orange ring: the head below.",
  importance: "Bright: a large share of the kept scores at this step; dark: none; orange ring: " +
    "the head below.",
  mean: "Effect map: mean change over the checkpoints after the first, up to this step; purple: " +
    "more important than at the first, orange: less; outlined: active at the last checkpoint.",
  effect: "Purple: more important than at the first checkpoint, orange: less; outlined: active " +
    "at the last checkpoint; orange ring: the head below.",
};

// -- the chosen head ----------------------------------------------------------------------------

function drawStrip(holder, run, row, view, palette) {
  const {pen, width, height} = sheet(holder, 92);
  const area = {left: 40, right: width - 8, top: 6, bottom: height - 22};
  drawStepAxis(pen, area, view, palette, false, false);
  drawUsageBars(pen, area, run, row, view, palette);
  return area;
}

function drawUsageBars(pen, area, run, row, view, palette) {
  const y = drawValueAxis(pen, area, 0, 1, palette, true);
  clipTo(pen, area, () => {
    for (const column of run.columns) {
      if (column.at < 0) continue;
      const part = probesAt(run, column.at, row);
      const from = placeOf(area, view, column.from), to = placeOf(area, view, column.to);
      pen.fillStyle = run.isBase[row] ? palette.base : palette.born;
      if (part > 0) pen.fillRect(from + 0.5, y(part), Math.max(1, to - from - 1), y(0) - y(part));
    }
    drawGaps(pen, run, view, area, palette, 1);
  });
}

function fillHeadPanel(run, row, at) {
  byId("head-title").textContent = "Head " + headName(run, row);
  byId("head-open").textContent = "Open the page of " + headName(run, row);
  byId("head-kind").textContent = kindText(run, row);
  const scored = !run.unscoredAt.has(at);
  fillList(byId("head-facts"), [
    ["Probes that use it", probesText(run, at, row)],
    ["Importance", scored ? percent(shareAt(run, at, row)) + " of all heads" : "not measured"],
    ["Change since start", scored ? signed(effectAt(run, at, row)) : "not measured"],
    ["Active at", run.activeAt[row] + " of " + run.times + " checkpoint" +
      (run.times === 1 ? "" : "s")],
  ]);
  byId("head-history").textContent = historyText(run, row) || "No change of state in this run.";
}

// The most important newborn at the end, else the most important head.
function firstHead(run) {
  let best = 0;
  const rank = row => (run.cohortOf[row] >= 0 ? 2 : 0) + shareAt(run, run.times - 1, row);
  for (let row = 1; row < run.rows; row++) if (rank(row) > rank(best)) best = row;
  return best;
}
