// The page: what is chosen (`view`), and what is drawn from it.

const root = document.documentElement;
const FIRST_TABLE_ROWS = 50, FIRST_CHECKPOINTS = 100;
const FEWEST_SHOWN = 5;
const view = {rule: PAGE.runs[0].rule, tab: "timeline", cursor: 0, hover: null, head: null, from: 0, to: 1, low: 0, high: 0,
  show: "ever", order: "birth", colour: "frequency", curve: 0, edges: 40, share: 0.5,
  through: "heads",
  sort: {column: 1, reversed: false}, tableRows: FIRST_TABLE_ROWS};
let run = null, palette = null, rows = [], sums = null, timer = null;
const areas = {};  // plot -> where its axes lie
let grid = null, mapGrid = null;
const EXTRAS = [];  // {all, draw, at}: views that only some pages have
const PLOTS = {  // plots over training steps of each view
  timeline: ["metric-plot", "cohorts-plot", "rows-plot", "shift-plot", "strip-plot"],
  head: ["importance-plot", "usage-plot"],
  circuit: [],
};

// -- drawing ------------------------------------------------------------------------------------

function drawAll() {
  palette = readPalette();
  for (const extra of EXTRAS) extra.all();
  for (const tab of Object.keys(PLOTS)) {
    byId(tab + "-view").hidden = tab !== view.tab;
    byId("tab-" + tab).setAttribute("aria-pressed", tab === view.tab);
  }
  measure([...PLOTS[view.tab].map(byId), byId("grid-plot").parentElement, byId("circuit-plot"),
    byId("map-plot").parentElement]);
  rows = rowsOnView(run, view);
  sums = tally(run, view);
  drawPlots();
  if (view.tab === "timeline") {
    fillLegend();
    drawScale(byId("scale"), run, view, palette);
    drawShiftScale(byId("shift-scale"), run, palette);
    byId("grid-caption").textContent = GRID_CAPTIONS[view.colour];
    fillRegime(run);
    fillHeadRows();
    markChosenRow(view.head);
  }
  drawComparedMap();
  moveCursor();
}

function drawPlots() {
  byId("unzoom").disabled = view.from === run.from && view.to === run.to;
  if (view.tab === "head") drawHeadPlots();
  if (view.tab !== "timeline") return;
  areas["metric-plot"] = drawCurve(byId("metric-plot"), run, run.curves[view.curve], view, palette);
  areas["cohorts-plot"] = drawCohorts(byId("cohorts-plot"), run, sums, view, palette);
  areas["rows-plot"] = drawRows(byId("rows-plot"), run, rows, view, palette);
  for (const extra of EXTRAS) extra.draw();
  areas["shift-plot"] = drawShift(byId("shift-plot"), run, view, palette);
  const hidden = run.rows - rows.length;
  byId("rows-text").textContent = rows.length + " of " + run.rows + " heads" +
    (hidden ? ", " + hidden + " filtered out" : "");
  const thinned = run.curves[view.curve] && run.curves[view.curve].thinnedFrom;
  byId("metric-caption").textContent = (run.logged ? "" :
    "No training log: these are the snapshots\u2019 own numbers. ") +
    "Hover to read, click to move the cursor, drag to zoom." +
    (thinned ? " Drawn from " + thinned + " values: lowest and highest of each stretch." : "") +
    curveNote(run, run.curves[view.curve]);
  drawHead();
}

function drawHeadPlots() {
  areas["importance-plot"] = drawImportance(byId("importance-plot"), run, view.head, view, palette);
  areas["usage-plot"] = drawUsage(byId("usage-plot"), run, view.head, view, palette);
}

const compared = () => PAGE.comparison && PAGE.comparison[view.rule];

function drawComparedMap() {
  if (!compared() || compared().refused) return;
  const when = byId("map-when").value;
  mapGrid = drawMap(byId("map-plot"), compared(), when, view, palette);
  fillMapLegend(PAGE.runs, compared(), when);
}

function showCircuit() {
  byId("circuit-title").textContent = "Circuit at step " + run.steps[view.cursor];
  const on = {head: openHead};
  const {shown, passing} = drawCircuit(byId("circuit-plot"), run, view, palette, on);
  const held = edgesAt(run, view.cursor).length;
  byId("edge-count").max = Math.max(FEWEST_SHOWN, held);
  byId("edge-count").value = view.edges;
  byId("edge-count-text").textContent = shown.length + " of " + passing;
  byId("circuit-text").textContent = shown.length ? shown.length + " strongest" +
    (view.through === "all" ? "" : " through heads") + ", down to " +
    scoreText(shown[shown.length - 1].strength) + " nats" :
    "No edge here is kept by so many probes.";
  byId("circuit-caption").textContent = "From bottom to top; thick: a large mean |score|; blue " +
    "lines: positive, red: negative; blue heads: born, violet: birth not known, all others grey; dashed frame: " +
    "undecided; small squares: shared keys and values. " + edgesCaption(run) +
    " The probes of this step keep " + run.edges.found[view.cursor] + " different edges in all.";
  if (byId("circuit-words").open) fillCircuitTable(byId("circuit-table"), run, shown, on);
}

function drawHead() {
  areas["strip-plot"] = drawStrip(byId("strip-plot"), run, view.head, view, palette);
  markHeadInRows();
  markChosenRow(view.head);
}

function fillHeadRows() {
  fillHeadTable(run, rows, view.sort, view.tableRows, palette, {sort: sortTable, head: openHead});
  const rest = rows.length - view.tableRows;
  byId("births-more").hidden = rest <= 0;
  byId("births-more").textContent = "Show all " + rows.length;
  byId("births-text").textContent = rows.length + " of " + run.rows + " heads";
}

function fillLegend() {
  const entry = (mark, name) => {
    const item = make("li", {}, [mark, make("span", {text: name}), make("b")]);
    return item;
  };
  const line = (name, colour) => {
    const mark = make("span", {class: name});
    mark.style.borderColor = colour;
    return mark;
  };
  const groups = run.groupNames.map((name, group) => {
    const mark = swatch(COHORT_COLOURS[group][0]);
    mark.style.color = COHORT_COLOURS[group][1];
    mark.textContent = group + 1;
    return entry(mark, (name.includes("\u2013") ? "steps " : "step ") + name);
  });
  byId("cohorts-legend").replaceChildren(...groups,
    entry(line("swatch line", palette.ink), "newly active"),
    entry(line("swatch line dashed", palette.base), "base retained"),
    ...run.rule === "paper" ? [] : [entry(make("span", {class: "swatch doubt"}),
      "born, now undecided")],
    ...run.null ? [entry(make("span", {class: "swatch null"}), "null (unchanged model)")] : []);
}

// Everything that follows the cursor.
function moveCursor() {
  byId("step").value = view.cursor;
  byId("step").setAttribute("aria-valuetext", "step " + run.steps[view.cursor]);
  byId("step-text").textContent = run.steps[view.cursor] + " (" + (view.cursor + 1) + " of " +
    run.times + ")";
  if (view.tab === "timeline") {
    byId("grid-title").textContent = "Layer \u00d7 head at step " + run.steps[view.cursor];
    grid = drawGrid(byId("grid-plot"), run, view, palette);
    fillSettings(run, view.cursor);
    fillHeadPanel(run, view.head, view.cursor);
  } else if (view.tab === "head") {
    fillHeadPage(run, view.head, view.cursor, {cursor: chooseCursor, head: openHead});
  } else {
    showCircuit();
  }
  showNumbers();
  stamp();
  keepLink();
}

// What follows the pointer while it hovers over a plot, else the cursor.
function showNumbers() {
  if (view.tab !== "timeline") return placeLines();
  const at = view.hover ?? view.cursor, step = run.steps[at];
  byId("cohorts-text").textContent = "step " + step + ": " + sums.emergent[at] + " emergent, " +
    sums.retained[at] + " of " + sums.base + " base" +
    (run.rule === "paper" ? "" : ", " + sums.undecided[at] + " undecided");
  const numbers = byId("cohorts-legend").querySelectorAll("b");
  sums.groups.forEach((counts, group) => {
    numbers[group].textContent = counts[at] + "/" + sums.sizes[group];
  });
  numbers[sums.groups.length].textContent = sums.born[at];
  numbers[sums.groups.length + 1].textContent = sums.retained[at];
  if (run.null) numbers[numbers.length - 1].textContent = nullText(run);
  if (run.rule !== "paper") numbers[sums.groups.length + 2].textContent = sums.doubted[at];
  byId("metric-text").textContent = curveText(run, run.curves[view.curve], step);
  for (const extra of EXTRAS) extra.at(at);
  return placeLines();
}

function placeLines() {
  for (const name of PLOTS[view.tab]) {
    const area = areas[name];
    place(name, "cursor", run.steps[view.cursor], area);
    place(name, "ghost", view.hover === null ? null : run.steps[view.hover], area);
  }
  if (view.tab !== "timeline") return;
  const flag = part("metric-plot", "flag"), area = areas["metric-plot"];
  const step = run.steps[view.cursor], x = placeOf(area, view, step);
  flag.hidden = x < area.left - 1 || x > area.right + 1;
  flag.textContent = "step " + step;
  const isLeft = x > (area.left + area.right) / 2;  // of the cursor
  flag.style.transform = isLeft ? "translateX(calc(" + (x - 3) + "px - 100%))" :
    "translateX(" + (x + 3) + "px)";
}

function part(plot, name) {
  const holder = byId(plot);
  let element = holder.querySelector("." + name);
  if (!element) holder.append(element = make("div", {class: name}));
  return element;
}

function place(plot, name, step, area) {
  const element = part(plot, name);
  const x = step === null ? -1 : placeOf(area, view, step);
  element.hidden = x < area.left - 1 || x > area.right + 1;
  element.style.transform = "translate(" + x + "px," + area.top + "px)";
  element.style.height = area.bottom - area.top + "px";
}

function markHeadInRows() {
  const area = areas["rows-plot"], index = rows.indexOf(view.head), mark = part("rows-plot", "row");
  mark.hidden = index < 0;
  if (index < 0) return;
  const height = Math.max(3, area.rowHeight);
  const middle = area.top + (index + 0.5) * area.rowHeight;
  mark.style.transform = "translate(" + (area.left - 2) + "px," + (middle - height / 2 - 2) + "px)";
  mark.style.width = area.right - area.left + 4 + "px";
  mark.style.height = height + 4 + "px";
}

// What a test, or `chromium --dump-dom`, can read off the root element.
function stamp() {
  const last = run.times - 1;
  Object.assign(root.dataset, {runs: PAGE.runs.length, run: view.run, checkpoints: run.times,
    layers: run.layers, heads: run.heads, step: run.steps[view.cursor], rows: rows.length,
    head: headName(run, view.head), active: run.sums.active[view.cursor],
    undecided: run.sums.undecided[view.cursor], rule: run.rule,
    emergent: sums.emergent[view.cursor], retained: sums.retained[view.cursor],
    newly: sums.born[view.cursor], born: sums.sizes.reduce((a, b) => a + b, 0),
    activeAtEnd: run.sums.active[last], groups: run.cohort_groups.length,
    problems: run.problems.length, curves: run.curves.length,
    from: view.from, to: view.to, view: view.tab});
}
