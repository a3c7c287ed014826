// Text: elements, tables, lists. Everything a run wrote reaches the page through textContent.

const byId = id => document.getElementById(id);

function make(tag, {class: name, text, ...attributes} = {}, children = []) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function fillList(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, text]) =>
    [make("dt", {text: name}), make("dd", {text})]));
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", {value, text})));
  select.value = String(chosen);
}

function swatch(colour) {
  const mark = make("span", {class: "swatch"});
  mark.style.background = colour;
  return mark;
}

// -- a row a head -------------------------------------------------------------------------------

const FIRST_STEPS = 8;

function stepsOf(run, row, ...kinds) {
  const steps = run.history[row].filter(e => kinds.includes(e.kind)).map(e => run.steps[e.at]);
  const more = steps.length - FIRST_STEPS;
  return steps.slice(0, FIRST_STEPS).join(", ") + (more > 0 ? " and " + more + " more" : "");
}

// name, text?, sort key (numbers descend first when `down`), cell text
const HEAD_COLUMNS = [
  {name: "head", text: true, key: (run, row) => row},
  {name: "born at", key: (run, row) => birthKey(run, row),
    show: (run, row) => run.isBase[row] ? "base" : run.isUndated[row] ? "neither" :
      run.cohortOf[row] < 0 ? "\u2013" : run.steps[run.cohortOf[row]] + lateText(run, row)},
  {name: "fell silent at", text: true, long: true,
    key: (run, row) => run.history[row].filter(e => /pruned|silenced/.test(e.kind)).length,
    down: true, show: (run, row) => stepsOf(run, row, "pruned", "silenced")},
  {name: "active again at", text: true, long: true,
    key: (run, row) => run.history[row].filter(e => /revived|returned/.test(e.kind)).length,
    down: true, show: (run, row) => stepsOf(run, row, "revived", "returned")},
  {name: "checkpoints active", down: true, key: (run, row) => run.activeAt[row]},
  {name: "state at the end", text: true, down: true,
    key: (run, row) => 2 * isActive(run, run.times - 1, row) + isUndecided(run, run.times - 1, row),
    show: (run, row) => stateText(run, run.times - 1, row)},
  {name: "share at the end, in even ones (95 %)", down: true, key: (run, row) =>
    massAt(run, run.times - 1, row) || 0,
  show: (run, row) => run.isKnown[row] ? massText(run, run.times - 1, row) : "\u2013"},
  {name: "probes at the end", down: true, key: (run, row) => probesAt(run, run.times - 1, row),
    show: (run, row) => probesText(run, run.times - 1, row)},
  {name: "importance at the end (95 %)", down: true,
    key: (run, row) => shareAt(run, run.times - 1, row),
    show: (run, row) => run.unscoredAt.has(run.times - 1) ? "\u2013" :
      importanceText(run, run.times - 1, row)},
  {name: "change since the start", down: true,
    key: (run, row) => effectAt(run, run.times - 1, row),
    show: (run, row) => run.unscoredAt.has(run.times - 1) ? "\u2013" :
      signed(effectAt(run, run.times - 1, row))},
  {name: "specificity", text: true, isOfControl: true, key: (run, row) => run.specificOf[row] || 9,
    show: (run, row) => SPECIFICITY[run.specificOf[row]] || "\u2013"},
];

// The mark of a birth that was settled later than it shows.
function lateText(run, row) {
  const late = lateBirth(run, row);
  return late ? " (late: shows since " + run.steps[late.onset] + ")" : "";
}

function fillHeadTable(run, rows, sort, limit, palette, on) {
  const columns = HEAD_COLUMNS.filter(item => !item.isOfControl || run.specificOf);
  const column = columns[sort.column] || columns[0];
  const turn = (column.down ? -1 : 1) * (sort.reversed ? -1 : 1);
  const ordered = rows.slice().sort((a, b) =>
    turn * (column.key(run, a) - column.key(run, b)) || a - b).slice(0, limit);
  const heading = make("tr", {}, columns.map((item, i) => {
    const arrow = i !== sort.column ? "" : (turn > 0 ? " \u2191" : " \u2193");
    const button = make("button", {type: "button", text: item.name + arrow});
    button.addEventListener("click", () => on.sort(i));
    const state = i !== sort.column ? "none" : turn > 0 ? "ascending" : "descending";
    return make("th", {class: item.text ? "text" : "", scope: "col", "aria-sort": state}, [button]);
  }));
  const body = ordered.map(row => make("tr", {"data-row": row}, columns.map((item, i) => {
    if (i === 0) return headCell(run, row, palette, on);
    const kind = (item.text ? "text" : "") + (item.long ? " long" : "");
    return make("td", {class: kind, text: (item.show || item.key)(run, row)});
  })));
  byId("births").replaceChildren(make("thead", {}, [heading]), make("tbody", {}, body));
}

function headCell(run, row, palette, on) {
  const button = make("button", {type: "button", text: headName(run, row)});
  button.addEventListener("click", () => on.head(row));
  const group = run.groupOf[row];
  const colour = group >= 0 ? COHORT_COLOURS[group][0] :
    run.isBase[row] ? palette.base : run.isUndated[row] ? palette.undated : palette.empty;
  return make("td", {class: "text"}, [swatch(colour), button]);
}

function markChosenRow(row) {
  for (const line of byId("births").querySelectorAll("tr")) {
    line.classList.toggle("chosen", line.dataset.row === String(row));
  }
}

// -- a row a checkpoint -------------------------------------------------------------------------

const CHECKPOINT_COLUMNS = [
  ["active", "active"], ["undecided", "undecided"], ["emergent", "emergent"], ["born", "born"], ["pruned", "pruned"],
  ["revived", "revived"], ["retained", "base retained"], ["silenced", "base silenced"],
  ["returned", "base returned"], ["edges", "edges a probe"], ["loss_corrupted", "KL, nats"],
  ["faithfulness", "faithful, median", "share of KL that the circuits carry alone"],
  ["completeness_gap_median", "gap, median", "small: the scores add up to the effect they explain"],
  ["completeness_gap_max", "gap, worst", "of any probe"],
  ["points", "points, m", "points on the path: fewest \u00b7 median \u00b7 most of a probe"],
  ["moved", "edges moved", "mean Jaccard distance of a probe\u2019s edges from the checkpoint before"],
  ["stability", "edges alike", "mean Jaccard of two probes"], ["seconds", "seconds"],
  ["overhead", "overhead", "share of the run\u2019s time that snapshots have taken"],
];
const SHARES = /^(completeness|faithfulness|overhead|moved|stability)/;

function countText(run, key, at) {
  const of = name => run.counts[name][at];
  if (key === "points") {
    return of("points_min") === of("points_max") ? number(of("points_min")) : number(of("points_min")) +
      " \u00b7 " + number(of("points_median")) + " \u00b7 " + number(of("points_max"));
  }
  const value = key === "moved" ? run.turnovers[0].values[at] :
    key === "stability" ? run.turnovers[2].values[at] : of(key);
  if (value === null || value === undefined) return "\u2013";
  return SHARES.test(key) ? percent(value) : number(Number(value.toPrecision(3)));
}

function fillCheckpointTable(run, limit, on) {
  const columns = CHECKPOINT_COLUMNS.filter(([key]) => key !== "undecided" || run.rule !== "paper");
  const heading = make("tr", {}, [[, "step"], ...columns].map(([, text, title = ""]) =>
    make("th", {scope: "col", text, title})));
  const body = run.steps.slice(0, limit).map((step, at) => {
    const button = make("button", {type: "button", text: step});
    button.addEventListener("click", () => on.cursor(at));
    return make("tr", {}, [make("td", {}, [button]),
      ...columns.map(([key]) => make("td", {text: countText(run, key, at)}))]);
  });
  byId("checkpoints").replaceChildren(make("thead", {}, [heading]), make("tbody", {}, body));
  byId("checkpoints-more").hidden = run.times <= limit;
  byId("checkpoints-more").textContent = "Show all " + run.times;
}

// -- circuit settings, regime -------------------------------------------------------------------

// A row a share of edges, a column a tau: heads in at least half of the probes' circuits.
function fillSettings(run, at) {
  byId("settings-title").textContent = "Heads under each circuit setting at step " + run.steps[at];
  const {grid} = run, half = Array.from({length: run.rows}, (_, row) => probesAt(run, at, row))
    .filter(share => share >= 0.5).length;
  const paper = "The paper\u2019s numbers are those of one setting with absolute n and \u03c4 (" +
    run.circuit_words + "), counted where any probe\u2019s circuit holds the head: " +
    run.looks.paper.sums.active[at] + " here, " + half + " in at least half of the circuits.";
  byId("settings-caption").textContent = paper +
    (grid ? "" : " These snapshots hold no grid of settings.");
  byId("circuit-settings").parentElement.hidden = !grid;
  if (!grid) return;
  const values = place => [...new Set(grid.settings.map(setting => setting[place]))];
  const heading = ["edges kept", ...values(1).map(tau => "\u03c4 = " + percent(tau) + " of L")]
    .map((text, i) => make("th", {class: i ? "" : "text", scope: "col", text}));
  const body = values(0).map(share => make("tr", {}, [make("td", {class: "text",
    text: percent(share) + " of all"}), ...values(1).map(tau => {
    const place = grid.settings.findIndex(([a, b]) => a === share && b === tau) * run.times + at;
    return make("td", {text: grid.half[place] + " (" + grid.any[place] + ")"});
  })]));
  byId("circuit-settings").replaceChildren(make("thead", {}, [make("tr", {}, heading)]),
    make("tbody", {}, body));
}

const VERDICTS = {accumulates: "Heads accumulate", searches: "Heads are tried and dropped",
  undecided: "Regime: undecided"};

function fillRegime(run) {
  byId("regime-title").textContent = VERDICTS[run.regime.verdict];
  byId("regime-reason").textContent = run.regime.reason;
  byId("regime-evidence").replaceChildren(...run.regime.evidence.map(text => make("li", {text})));
}

// -- several runs -------------------------------------------------------------------------------

function fillComparison(runs, comparison, on) {
  byId("compared").hidden = !comparison;
  if (!comparison) return;
  const {refused, warnings, columns, rows, overlap} = comparison;
  byId("compared-refused").hidden = !refused;
  byId("compared-refused").textContent = refused ? "These runs are not compared: " + refused : "";
  byId("compared-tables").hidden = Boolean(refused);
  if (refused) return;
  byId("compared-warnings").replaceChildren(...warnings.map(text =>
    make("p", {class: "problem", text})));
  decodeMaps(comparison);
  fillGrid(byId("compared-runs"), columns, rows, on);
  fillGrid(byId("compared-overlap"), ["emergent at the end", ...runs.map(run => run.name)],
    overlap.map((cells, index) => [runs[index].name, ...cells]), on);
}

// A row a run, its first cell the name that chooses it.
function fillGrid(table, columns, rows, on) {
  const heading = columns.map((text, i) =>
    make("th", {class: i ? "" : "text", scope: "col", text}));
  const body = rows.map(([name, ...cells], index) => {
    const button = make("button", {type: "button", text: name});
    button.addEventListener("click", () => on.run(index));
    return make("tr", {}, [make("td", {class: "text long"}, [button]),
      ...cells.map(text => make("td", {text}))]);
  });
  table.replaceChildren(make("thead", {}, [make("tr", {}, heading)]), make("tbody", {}, body));
}

function markChosenRun(index) {
  for (const table of [byId("compared-runs"), byId("compared-overlap")]) {
    table.querySelectorAll("tbody tr").forEach((line, at) =>
      line.classList.toggle("chosen", at === index));
  }
}

// -- the top of the page ------------------------------------------------------------------------

function fillHeader(run) {
  const steps = run.times === 1 ? "1 checkpoint, step " + run.steps[0] :
    run.times + " checkpoints, steps " + run.steps[0] + "\u2013" + run.steps[run.times - 1];
  const name = PAGE.runs.length > 1 ? [run.name] : [];
  const group = run.group === null ? "" : " (group " + run.group + ")";
  byId("about").textContent = [...name, run.model,
    run.layers + " layers \u00d7 " + run.heads + " heads", steps,
    run.probes + (run.probes === 1 ? " probe" : " probes") + group].join(" \u00b7 ");
  const parts = run.verdict.split(/( \([^)]*\)|; (?:an unchanged model|rounding).*)/);
  byId("verdict").replaceChildren(...parts.map((text, i) =>
    make("span", {class: i % 2 ? "soft" : "", text})));
  byId("summary").textContent = run.summary.join(" ");
  const tiles = run.numbers.map(({value, label, detail}) => make("div", {}, [
    make("dt", {text: label}), make("dd", {text: value}), make("dd", {text: detail})]));
  byId("numbers").replaceChildren(...tiles.slice(0, 3));
  byId("more-numbers").replaceChildren(...tiles.slice(3));
  byId("notes").replaceChildren(...run.notes.map(text => make("p", {text})));
  byId("problems").hidden = run.problems.length === 0;
  byId("problems-title").textContent = run.problems.length === 1 ?
    "One thing to know about these numbers" :
    run.problems.length + " things to know about these numbers";
  const shown = run.problems.slice(0, 12).map(text => make("li", {text}));
  const rest = run.problems.length - shown.length;
  if (rest > 0) shown.push(make("li", {text: "and " + rest + " more of the kind"}));
  byId("problem-list").replaceChildren(...shown);
  fillList(byId("settings"), run.settings);
}
