// What a reader can choose, and the controls that do; the page starts here.

// -- choosing -----------------------------------------------------------------------------------

function chooseRun(index, link = {}) {
  stop();
  if (RULES.includes(link.rule)) view.rule = link.rule;
  view.run = index;
  run = PAGE.runs[index];
  if (!run.level) decodeRun(run, view.rule);
  if (run.rule !== view.rule) applyRule(run, view.rule);
  Object.assign(view, {cursor: run.times - 1, hover: null, head: firstHead(run), from: run.from,
    to: run.to, low: 0, high: run.layers - 1, tableRows: FIRST_TABLE_ROWS});
  view.curve = firstCurve();
  if (view.show === "ever" && !run.activeAt.some(times => times)) view.show = "open";
  applyLink(run, view, link);
  const layers = Array.from({length: run.layers}, (_, layer) => [layer, layer]);
  fillSelect(byId("low"), layers, view.low);
  fillSelect(byId("high"), layers, view.high);
  fillCurves();
  byId("run").value = String(index);
  for (const name of CHOICES) byId(name).value = view[name];
  byId("edge-share").value = String(view.share);
  byId("edge-through").value = view.through;
  byId("step").max = run.times - 1;
  byId("step").disabled = byId("play").disabled = run.times === 1;
  showRule(true);
}

// Words and tables that the rule decides, then all views.
function showRule(isNew) {
  byId("rule").value = run.rule;
  fillComparison(PAGE.runs, compared(), {run: chooseRun});
  markChosenRun(view.run);
  fillHeader(run);
  const isQuiet = !run.growth && !run.history.some(events => events.length);
  byId("nothing").hidden = !isQuiet;
  if (!isQuiet || isNew) byId("plots").open = !isQuiet;
  byId("cohorts-plot").parentElement.hidden = !run.cohort_groups.length;
  fillCheckpointTable(run, FIRST_CHECKPOINTS, {cursor: chooseCursor});
  drawAll();
}

function chooseRule(rule) {
  const name = run.curves[view.curve] && run.curves[view.curve].name;
  view.rule = rule;
  applyRule(run, rule);
  view.curve = Math.max(0, run.curves.findIndex(curve => curve.name === name));
  fillCurves();
  showRule();
}

function chooseTab(tab) {
  const place = root.scrollTop;
  view.tab = tab;
  drawAll();
  const top = byId(tab + "-view").getBoundingClientRect().top;
  if (place && top < 0) byId(tab + "-view").scrollIntoView();
}

function openHead(row) {
  view.head = row;
  chooseTab("head");
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
  const groups = ["training log", "heads", "circuits", "control probes"];
  const parts = groups.map(group => [group, all.filter(i =>
    (run.curves[i].group || groups[0]) === group)]).filter(([, found]) => found.length);
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
  if (view.tab === "timeline") drawHead();
  else drawPlots();
  moveCursor();
}

// The address follows the view, and its entry the scroll, a while after the last change, where the
// browser lets it. Loaded again, the page is drawn too late for the browser to know its place.
let linkTimer = null;

function keepLink() {
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => {
    try {
      history.replaceState([scrollX, scrollY], "", linkText(run, view, PAGE.runs.length === 1));
    } catch {
      // A frame without an address of its own.
    }
  }, 400);
}

function followLink() {
  const link = readLink(location.hash);
  const index = PAGE.runs.findIndex(item => item.name === link.run);
  chooseRun(Math.max(0, index), link);
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
  for (const name of CHOICES) {
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
  byId("checkpoints-more").addEventListener("click", () =>
    fillCheckpointTable(run, Infinity, {cursor: chooseCursor}));
  byId("births-more").addEventListener("click", () => {
    view.tableRows = Infinity;
    fillHeadRows();
    markChosenRow(view.head);
  });
  for (const tab of Object.keys(PLOTS)) {
    byId("tab-" + tab).addEventListener("click", () => chooseTab(tab));
  }
  byId("head-open").addEventListener("click", () => openHead(view.head));
  byId("find").addEventListener("change", findHead);
  byId("find").addEventListener("keydown", event => event.key === "Enter" && findHead());
  byId("edge-count").addEventListener("input", event => {
    view.edges = Number(event.target.value);
    moveCursor();
  });
  byId("edge-share").addEventListener("change", event => {
    view.share = Number(event.target.value);
    moveCursor();
  });
  byId("edge-through").addEventListener("change", event => {
    view.through = event.target.value;
    moveCursor();
  });
  byId("plots").addEventListener("toggle", () => run && drawAll());  // what is hidden has no width
  byId("circuit-words").addEventListener("toggle", () => view.tab === "circuit" && moveCursor());
  byId("link").addEventListener("click", () =>
    copyLink(linkOf(linkText(run, view, PAGE.runs.length === 1))));
  window.addEventListener("hashchange", followLink);
  byId("rule").addEventListener("change", event => chooseRule(event.target.value));
  byId("run").addEventListener("change", event => chooseRun(Number(event.target.value)));
  document.addEventListener("keydown", onKey);
}

function findHead() {
  const text = byId("find").value.trim();
  if (!text) return;
  const row = headByName(run, text);
  byId("find").setAttribute("aria-invalid", row === null);
  byId("find-state").textContent = row === null ? "no such head" : "";
  if (row !== null) openHead(row);
}

function listenToTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let own = false, before = false;
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
  // Paper is white, and nobody can unfold it.
  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
    before = root.dataset.theme === "dark";
    if (before) set(false);
  });
  window.addEventListener("afterprint", () => before && set(true));
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
  stop();
  listenToTheme();
  listenToControls();
  followLink();
  for (const name of Object.values(PLOTS).flat()) listenToPlot(name);
  listenToGrid();
  listenToMap();
  listenToCircuit(byId("circuit-plot"), tip);
  listenToSize();
  if (history.state) scrollTo(...history.state);
  window.addEventListener("scroll", keepLink);
  root.dataset.ready = "1";
}

function fail(reason) {
  root.dataset.error = String(reason);
  byId("failure").hidden = false;
  byId("failure").textContent = "This report could not be drawn: " + reason;
}

window.addEventListener("error", event => fail(event.message));
start();
