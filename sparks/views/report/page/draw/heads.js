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
  const grey = unscored ? hatch(pen, palette) : null, doubts = doubt(pen, palette);
  for (let row = 0; row < run.rows; row++) {
    const [x, y] = cellCorner(run, grid, row);
    pen.globalAlpha = dimmed(run, row, view) ? 0.22 : 1;
    pen.fillStyle = grey || cssColour(cellColour(run, palette, view.colour, view.cursor, row));
    pen.fillRect(x, y, cell.width - gap, cell.height - gap);
    if (isUndecided(run, view.cursor, row)) {
      pen.fillStyle = doubts;
      pen.fillRect(x, y, cell.width - gap, cell.height - gap);
    }
    if (outlined && isActive(run, run.times - 1, row)) {
      outline(pen, x, y, cell, gap, run.isBase[row] ? palette.hatch : palette.mark);
    }
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

function outline(pen, x, y, cell, gap, colour) {
  pen.strokeStyle = pen.fillStyle = colour;
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
    frequency: () => [["emergent head", palette.bornRgb], ["base head", palette.baseRgb],
      ...run.isUndated.some(Boolean) ? [["neither", palette.undatedRgb]] : []].map(([name, full]) =>
      [name, part => usageColour(palette, full, part, true), "silent",
        run.rule === "paper" ? "all probes" : "all of the score"]),
    importance: () => [["square root", cividis, "0", percent(run.importance_max)]],
    mean: () => [["mean, 0 in the middle", part => effectColour(palette, 2 * part - 1),
      "\u22121 gone", "+1 new"]],
    effect: () => [["0 in the middle", part => effectColour(palette, 2 * part - 1),
      "\u22121 gone", "+1 new"]],
  }[view.colour]();
  const open = run.rule === "paper" ? [] : [make("div", {class: "ramp"}, [
    make("span", {text: "undecided"}), make("span", {class: "swatch doubt"}),
    make("span", {text: "striped"})])];
  holder.replaceChildren(...ramps.map(([name, colour, low, high]) =>
    make("div", {class: "ramp"}, [make("span", {text: name}), make("span", {text: low}),
      rampPicture(colour), make("span", {text: high})])), ...open);
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
  frequency: "Striped: undecided; framed: active at the end; orange ring: the head below.",
  importance: "Bright: a large share of the kept scores; striped: undecided; orange ring: the head " +
    "below.",
  mean: "Effect map, mean change up to this step: blue: more important than at the first " +
    "checkpoint, red: less; framed: active at the end.",
  effect: "Blue: more important than at the first checkpoint, red: less; framed: active at the end.",
};

// -- the chosen head ----------------------------------------------------------------------------

function drawStrip(holder, run, row, view, palette) {
  const {pen, width, height} = sheet(holder, 92);
  const area = {left: 40, right: width - 8, top: 6, bottom: height - 22};
  drawStepAxis(pen, area, view, palette, false, false);
  drawUsageBars(pen, area, run, row, view, palette);
  return area;
}

// By the paper's rule a bar a checkpoint, else the share of score mass with its interval.
function drawUsageBars(pen, area, run, row, view, palette) {
  const top = run.rule === "paper" ? 1 : topMass(run, row);
  const y = drawValueAxis(pen, area, 0, top, palette, top > 2), colour = headColour(run, row, palette);
  clipTo(pen, area, () => {
    if (run.rule === "paper") drawBars(pen, area, run, row, view, y, colour);
    else drawMass(pen, area, run, row, view, y, colour, palette);
    drawGaps(pen, run, view, area, palette, 1);
  });
}

function drawBars(pen, area, run, row, view, y, colour) {
  pen.fillStyle = colour;
  for (const column of run.columns) {
    if (column.at < 0) continue;
    const part = probesAt(run, column.at, row);
    const from = placeOf(area, view, column.from), to = placeOf(area, view, column.to);
    if (part > 0) pen.fillRect(from + 0.5, y(part), Math.max(1, to - from - 1), y(0) - y(part));
  }
}

// The end of the axis: what the head reaches, and more than an even share.
function topMass(run, row) {
  const reached = run.steps.map((_, at) => massEnds(run, at, row)[1] || massAt(run, at, row));
  return Math.max(1.5, Math.min(1.1 * Math.max(...reached.filter(Number.isFinite)), 64));
}

// Striped columns: undecided. A ring where a birth shows, a dot where it is settled.
function drawMass(pen, area, run, row, view, y, colour, palette) {
  if (!run.isKnown[row]) return;
  pen.save();
  pen.globalAlpha = 0.3;
  pen.fillStyle = doubt(pen, palette);
  for (const column of run.columns) {
    if (column.at < 0 || !isUndecided(run, column.at, row)) continue;
    const from = placeOf(area, view, column.from), to = placeOf(area, view, column.to);
    pen.fillRect(from, area.top, to - from, area.bottom - area.top);
  }
  pen.restore();
  const x = run.steps.map(step => placeOf(area, view, step));
  const ends = run.steps.map((_, at) => massEnds(run, at, row));
  if (!ends.flat().some(Number.isNaN)) drawEnds(pen, x, ends.map(([low]) => y(low)), ends.map(([, high]) => y(high)), colour);
  drawLine(pen, [[area.left, y(1)], [area.right, y(1)]], palette.soft, [2, 3], false);
  drawLine(pen, x.map((place, at) => [place, y(massAt(run, at, row))]), colour, [],
    run.times < 45);
  const late = lateBirth(run, row);
  if (!late) return;
  const path = [late.onset, late.at].map(at => [x[at], y(massAt(run, at, row))]);
  drawLine(pen, path, palette.ink, [2, 2], true);
  pen.beginPath();
  pen.arc(...path[0], 5, 0, 7);
  pen.strokeStyle = palette.ink;
  pen.stroke();
}

function factsOfHead(run, row, at) {
  const scored = !run.unscoredAt.has(at), specific = specificText(run, row);
  return [
    ["State", stateText(run, at, row)],
    ["Share, in even ones (95 %)", massText(run, at, row)],
    ["Probes that use it", probesText(run, at, row)],
    ["Importance (95 %)", importanceText(run, at, row)],
    ["Change since start", scored ? signed(effectAt(run, at, row)) : "not measured"],
    ...specific ? [["Specificity", specific]] : [],
  ];
}

const activeAtText = (run, row) => run.activeAt[row] + " of " + run.times + " checkpoint" +
  (run.times === 1 ? "" : "s") +
  (run.undecidedAt[row] ? ", undecided at " + run.undecidedAt[row] : "");

function fillHeadPanel(run, row, at) {
  byId("head-title").textContent = "Head " + headName(run, row);
  byId("head-open").textContent = "Open the page of " + headName(run, row);
  byId("head-kind").textContent = kindText(run, row);
  fillList(byId("head-facts"), [...factsOfHead(run, row, at),
    ["Active at", activeAtText(run, row)]]);
  byId("head-history").textContent = historyText(run, row) || "No change of state in this run.";
  byId("strip-caption").textContent = usageCaption(run);
}

const usageCaption = run => run.rule === "paper" ?
  "Share of probes whose circuit holds this head." :
  "In even shares, with its 95 % interval; dotted: an even share; striped: undecided; ring and " +
  "dot: a birth that shows earlier than it is settled.";

// The most important newborn at the end, else the most important head.
function firstHead(run) {
  let best = 0;
  const rank = row => (run.cohortOf[row] >= 0 ? 2 : 0) + shareAt(run, run.times - 1, row);
  for (let row = 1; row < run.rows; row++) if (rank(row) > rank(best)) best = row;
  return best;
}
