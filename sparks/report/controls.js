// What a reader can choose, and the controls, pointer and keys that do.

// -- choosing -----------------------------------------------------------------------------------

function chooseRun(index) {
  stop();
  view.run = index;
  run = PAGE.runs[index];
  byId("run").value = String(index);
  markChosenRun(index);
  if (!run.level) decodeRun(run);
  Object.assign(view, {cursor: run.times - 1, hover: null, head: firstHead(run), from: run.from,
    to: run.to, low: 0, high: run.layers - 1, tableRows: FIRST_TABLE_ROWS});
  view.curve = firstCurve();
  const layers = Array.from({length: run.layers}, (_, layer) => [layer, layer]);
  fillSelect(byId("low"), layers, view.low);
  fillSelect(byId("high"), layers, view.high);
  fillCurves();
  byId("step").max = run.times - 1;
  byId("step").disabled = byId("play").disabled = run.times === 1;
  fillHeader(run);
  fillCheckpointTable(run, {cursor: chooseCursor});
  drawAll();
}

function firstCurve() {
  for (const name of ["reward", "loss", "train_loss", "eval_loss"]) {
    const index = run.curves.findIndex((curve, i) => i < run.logged && curve.name === name);
    if (index >= 0) return index;
  }
  return 0;
}

function fillCurves() {
  const option = index => make("option", {value: index, text: run.curves[index].name});
  const all = run.curves.map((_, index) => index);
  const parts = [["training log", all.filter(i => i < run.logged)],
    ["snapshots", all.filter(i => i >= run.logged)]].filter(([, found]) => found.length);
  byId("metric").replaceChildren(...parts.map(([label, found]) =>
    make("optgroup", {label}, found.map(option))));
  byId("metric").value = String(view.curve);
  fitCurveSelect();
}

// As wide as the chosen name, not as the longest one.
function fitCurveSelect() {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "650 15px system-ui, sans-serif";
  const name = run.curves[view.curve].name;
  byId("metric").style.width = Math.ceil(pen.measureText(name).width * 1.06) + 46 + "px";
}

function chooseCursor(at) {
  view.cursor = Math.max(0, Math.min(run.times - 1, at));
  const step = run.steps[view.cursor], width = view.to - view.from;
  if (step < view.from || step > view.to) {
    const from = Math.max(run.from, Math.min(run.to - width, step - width / 2));
    zoom(from, from + width);
    return;
  }
  moveCursor();
}

function chooseHead(row) {
  view.head = row;
  drawHead();
  moveCursor();
}

// A range that holds no two checkpoints is widened to its neighbours.
function zoom(from, to) {
  const inside = run.steps.filter(step => from <= step && step <= to);
  if (inside.length < 2 && run.times > 1) {
    const near = nearestCheckpoint(run, (from + to) / 2);
    from = Math.min(from, run.steps[Math.max(0, near - 1)]);
    to = Math.max(to, run.steps[Math.min(run.times - 1, near + 1)]);
  }
  view.from = Math.max(run.from, from);
  view.to = Math.min(run.to, to);
  drawPlots();
  drawHead();
  moveCursor();
}

function zoomBy(factor) {
  const middle = run.steps[view.cursor];
  zoom(middle - (middle - view.from) * factor, middle + (view.to - middle) * factor);
}

function sortTable(column) {
  view.sort = {column, reversed: view.sort.column === column && !view.sort.reversed};
  fillHeadRows();
  markChosenRow(view.head);
  byId("births").querySelectorAll("th button")[column].focus();
}

function stop() {
  clearInterval(timer);
  timer = null;
  byId("play").textContent = "\u25b6";
  byId("play").setAttribute("aria-label", "play through the checkpoints");
}

function play() {
  if (timer) return stop();
  byId("play").textContent = "\u275a\u275a";
  byId("play").setAttribute("aria-label", "pause");
  if (view.cursor === run.times - 1) chooseCursor(0);
  timer = setInterval(() => {
    chooseCursor(view.cursor + 1);
    if (view.cursor === run.times - 1) stop();
  }, Math.max(120, Math.min(700, 9000 / run.times)));
  return undefined;
}

// -- pointer and keys ---------------------------------------------------------------------------

function tip(event, text) {
  const box = byId("tip");
  box.style.visibility = text ? "visible" : "hidden";
  if (!text) return;
  box.textContent = text;
  const x = Math.min(event.clientX + 14, root.clientWidth - box.offsetWidth - 6);
  const above = event.clientY + 18 + box.offsetHeight > root.clientHeight;
  const y = event.clientY + (above ? -box.offsetHeight - 10 : 18);
  box.style.transform = "translate(" + Math.max(4, x) + "px," + y + "px)";
}

function tipText(row, at) {
  return headName(run, row) + ", " + kindText(run, row) + "\nstep " + run.steps[at] + ": " +
    probesText(run, at, row) + " probes" + (run.unscoredAt.has(at) ? "" : ", importance " +
    percent(shareAt(run, at, row)) + ", change " + signed(effectAt(run, at, row)));
}

function rowUnder(y) {
  const area = areas["rows-plot"], index = Math.floor((y - area.top) / area.rowHeight);
  return rows[index] ?? null;
}

function listenToPlot(name) {
  const holder = byId(name), isRows = name === "rows-plot";
  let start = null, dragged = false;
  const at = event => {
    const box = holder.getBoundingClientRect(), area = areas[name];
    const x = Math.max(area.left, Math.min(area.right, event.clientX - box.left));
    return {x, y: event.clientY - box.top, step: stepAt(area, view, x)};
  };
  holder.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    start = at(event);
    dragged = false;
    holder.setPointerCapture(event.pointerId);
  });
  holder.addEventListener("pointermove", event => {
    const now = at(event);
    if (start && Math.abs(now.x - start.x) > 6) dragged = true;
    if (dragged) return showBrush(name, start.x, now.x);
    const hover = nearestCheckpoint(run, now.step);
    const row = isRows ? rowUnder(now.y) : null;
    tip(event, row === null ? "" : tipText(row, hover));
    if (hover !== view.hover) setHover(hover);
    return undefined;
  });
  holder.addEventListener("pointerup", event => {
    if (!start) return;
    const end = at(event), from = start;
    start = null;
    part(name, "brush").hidden = true;
    if (dragged) {
      dragged = false;
      zoom(Math.min(from.step, end.step), Math.max(from.step, end.step));
      return;
    }
    const row = isRows ? rowUnder(end.y) : null;
    if (row !== null) view.head = row;
    chooseCursor(nearestCheckpoint(run, end.step));
    if (row !== null) drawHead();
  });
  const leave = () => {
    start = null;
    dragged = false;
    part(name, "brush").hidden = true;
    tip(null, "");
    setHover(null);
  };
  holder.addEventListener("pointerleave", leave);
  holder.addEventListener("pointercancel", leave);
  holder.addEventListener("dblclick", () => zoom(run.from, run.to));
}

function setHover(at) {
  view.hover = at;
  showNumbers();
}

function showBrush(name, a, b) {
  const brush = part(name, "brush"), area = areas[name];
  brush.hidden = false;
  brush.style.transform = "translate(" + Math.min(a, b) + "px," + area.top + "px)";
  brush.style.width = Math.abs(a - b) + "px";
  brush.style.height = area.bottom - area.top + "px";
}

function listenToGrid() {
  const holder = byId("grid-plot");
  const under = event => {
    const box = holder.getBoundingClientRect();
    return headInGrid(run, grid, event.clientX - box.left, event.clientY - box.top);
  };
  holder.addEventListener("pointermove", event => {
    const row = under(event);
    tip(event, row === null ? "" : tipText(row, view.cursor));
  });
  holder.addEventListener("pointerleave", () => tip(null, ""));
  holder.addEventListener("click", event => {
    const row = under(event);
    if (row !== null) chooseHead(row);
  });
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function moveHeadInGrid([across, down]) {
  const layer = Math.floor(view.head / run.heads) + down, head = view.head % run.heads + across;
  if (layer < 0 || layer >= run.layers || head < 0 || head >= run.heads) return;
  chooseHead(layer * run.heads + head);
}

function moveHeadInRows(down) {
  const index = rows.indexOf(view.head);
  const next = index < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, index + down));
  if (rows.length) chooseHead(rows[next]);
}

function onKey(event) {
  const {target, key} = event;
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) || target.closest(".scroll")) return;
  const arrow = ARROWS[key];
  const act = () => {
    if (arrow && target.id === "grid-plot") return () => moveHeadInGrid(arrow);
    if (arrow && arrow[1]) {
      return target.id === "rows-plot" ? () => moveHeadInRows(arrow[1]) : null;
    }
    if (arrow) return () => chooseCursor(view.cursor + arrow[0]);
    return {Home: () => chooseCursor(0), End: () => chooseCursor(run.times - 1),
      "+": () => zoomBy(0.5), "=": () => zoomBy(0.5), "-": () => zoomBy(2),
      "0": () => zoom(run.from, run.to), Escape: () => zoom(run.from, run.to)}[key];
  };
  const chosen = act();
  if (!chosen) return;
  event.preventDefault();
  stop();
  chosen();
}

// -- controls -----------------------------------------------------------------------------------

function listenToControls() {
  byId("controls").addEventListener("submit", event => event.preventDefault());
  byId("step").addEventListener("input", event => {
    stop();
    chooseCursor(Number(event.target.value));
  });
  byId("play").addEventListener("click", play);
  byId("unzoom").addEventListener("click", () => zoom(run.from, run.to));
  byId("metric").addEventListener("change", event => {
    view.curve = Number(event.target.value);
    fitCurveSelect();
    drawPlots();
    moveCursor();
  });
  for (const name of ["show", "order", "colour"]) {
    byId(name).value = view[name];
    byId(name).addEventListener("change", event => {
      view[name] = event.target.value;
      drawAll();
    });
  }
  for (const [name, other, limit] of [["low", "high", Math.max], ["high", "low", Math.min]]) {
    byId(name).addEventListener("change", event => {
      view[name] = Number(event.target.value);
      view[other] = limit(view[name], view[other]);
      byId(other).value = view[other];
      drawAll();
    });
  }
  byId("births-more").addEventListener("click", () => {
    view.tableRows = Infinity;
    fillHeadRows();
    markChosenRow(view.head);
  });
  byId("run").addEventListener("change", event => chooseRun(Number(event.target.value)));
  document.addEventListener("keydown", onKey);
}

function listenToTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let own = false;
  const set = isDark => {
    root.dataset.theme = isDark ? "dark" : "light";
    byId("theme").textContent = isDark ? "\u2600" : "\u263e";
    if (run) drawAll();
  };
  dark.addEventListener("change", () => own || set(dark.matches));
  byId("theme").addEventListener("click", () => {
    own = true;
    set(root.dataset.theme !== "dark");
  });
  set(dark.matches);
}

function listenToSize() {
  let width = window.innerWidth;
  window.addEventListener("resize", () => requestAnimationFrame(() => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    drawAll();
  }));
}

function start() {
  document.title = PAGE.title;
  byId("title").textContent = PAGE.title;
  byId("run-choice").hidden = PAGE.runs.length < 2;
  fillSelect(byId("run"), PAGE.runs.map((item, index) => [index, item.name]), 0);
  fillComparison(PAGE.runs, PAGE.comparison, {run: chooseRun});
  stop();
  listenToTheme();
  listenToControls();
  chooseRun(0);
  for (const name of PLOTS) listenToPlot(name);
  listenToGrid();
  listenToSize();
  root.dataset.ready = "1";
}

function fail(reason) {
  root.dataset.error = String(reason);
  byId("failure").hidden = false;
  byId("failure").textContent = "This report could not be drawn: " + reason;
}

window.addEventListener("error", event => fail(event.message));
start();
