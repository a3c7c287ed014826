// Reading: the packed arrays of a run, and what the views derive from them.
// A "row" is a head, layer * heads + head. A "cell" is checkpoint * rows + row.

const bit = (bytes, index) => (bytes[index >> 3] >> (7 - (index & 7))) & 1;

function decodeRun(run) {
  const rows = run.layers * run.heads, times = run.steps.length;
  run.rows = rows;
  run.times = times;
  decodeCells(run);
  const base = unpack(run.base);
  run.isBase = Array.from({length: rows}, (_, row) => bit(base, row) === 1);
  run.cohortOf = unpackPlanes(run.cohort, Int16Array);
  run.groupOf = Array.from(run.cohortOf, cohort => cohort < 0 ? -1 :
    run.cohort_groups.findIndex(([first, last]) => first <= cohort && cohort <= last));
  run.groupNames = run.cohort_groups.map(([first, last]) => first === last ?
    String(run.steps[first]) : run.steps[first] + "\u2013" + run.steps[last]);
  run.unscoredAt = new Set(run.unscored);
  run.activeAt = new Int32Array(rows);  // how many checkpoints hold the head
  for (let cell = 0; cell < run.level.length; cell++) {
    if (run.level[cell]) run.activeAt[cell % rows]++;
  }
  decodeEvents(run);
  decodeShift(run);
  decodeCurves(run);
  decodeAxis(run);
  return run;
}

// Sent head by head; here checkpoint by checkpoint.
function decodeCells(run) {
  const mask = unpack(run.mask), levels = unpack(run.levels);
  const roots = sumUp(unpackPlanes(run.importance, Uint16Array));
  run.level = new Uint8Array(run.rows * run.times);
  run.share = new Float32Array(run.rows * run.times);
  let next = 0;
  for (let row = 0; row < run.rows; row++) {
    let isHeld = 0;
    for (let at = 0; at < run.times; at++) {
      isHeld ^= bit(mask, row * run.times + at);
      if (!isHeld) continue;
      const root = roots[next] / 65535, cell = at * run.rows + row;
      run.level[cell] = levels[next++];
      run.share[cell] = run.importance_max * root * root;
    }
  }
}

// E of the embedding, of each layer's attention, of each layer's MLP: part * times + checkpoint.
function decodeShift(run) {
  const bytes = new Int8Array(unpack(run.shift).buffer);
  run.shiftOf = new Float32Array(bytes.length);
  for (let start = 0; start < bytes.length; start += run.times) {
    const part = sumUp(bytes.subarray(start, start + run.times));
    part.forEach((value, at) => { run.shiftOf[start + at] = value / 127; });
  }
}

function decodeEvents(run) {
  const sent = unpackPlanes(run.events, Uint16Array), count = sent.length / 3;
  run.history = Array.from({length: run.rows}, () => []);
  for (let i = 0; i < count; i++) {
    run.history[sent[i]].push({at: sent[count + i], kind: run.event_kinds[sent[2 * count + i]]});
  }
}

// The trainer's curves, then those that the snapshots themselves give.
const OWN_CURVES = [
  ["active", "active heads"],
  ["edges", "kept edges a probe (mean)"],
  ["loss_corrupted", "KL clean \u2016 corrupted (mean, nats)"],
  ["faithfulness", "faithfulness of the circuits (median)"],
  ["completeness_gap_median", "completeness gap (median)"],
  ["completeness_gap_max", "completeness gap (worst probe)"],
  ["seconds", "seconds a snapshot"],
];

function decodeCurves(run) {
  const steps = unpackPlanes(run.metric_steps, Uint32Array);
  const values = unpackPlanes(run.metric_values, Float32Array);
  let next = 0;
  run.curves = run.metrics.map(({name, count, thinned_from: thinnedFrom}) => {
    const from = next, to = next += count;
    return {name, steps: Array.from(sumUp(steps.subarray(from, to))),
      values: Array.from(values.subarray(from, to)), thinnedFrom};
  });
  run.logged = run.curves.length;
  for (const [key, name] of OWN_CURVES) {
    const at = run.steps.map((_, i) => i).filter(i => run.counts[key][i] !== null);
    if (at.length) run.curves.push({name, steps: at.map(i => run.steps[i]),
      values: at.map(i => run.counts[key][i])});
  }
}

// Columns reach half-way to their neighbours; a step that could not be read keeps its own column.
function decodeAxis(run) {
  const columns = run.steps.map((step, at) => ({step, at}))
    .concat(run.missing_steps.map(step => ({step, at: -1}))).sort((a, b) => a.step - b.step);
  const gaps = columns.slice(1).map((c, i) => c.step - columns[i].step).sort((a, b) => a - b);
  const pad = (gaps.length ? gaps[gaps.length >> 1] : 1) / 2;
  columns.forEach((column, i) => {
    column.from = i ? (columns[i - 1].step + column.step) / 2 : column.step - pad;
    column.to = i + 1 < columns.length ? (column.step + columns[i + 1].step) / 2 :
      column.step + pad;
  });
  run.columns = columns;
  run.from = columns[0].from;
  run.to = columns[columns.length - 1].to;
  for (const curve of run.curves) {
    run.from = Math.min(run.from, curve.steps[0]);
    run.to = Math.max(run.to, curve.steps[curve.steps.length - 1]);
  }
}

const headName = (run, row) => "L" + Math.floor(row / run.heads) + "H" + row % run.heads;
const isActive = (run, at, row) => run.level[at * run.rows + row] > 0;
const probesAt = (run, at, row) => run.level[at * run.rows + row] / run.level_unit;
const shareAt = (run, at, row) => run.share[at * run.rows + row];

// A.6: E = (I_t - I_pre) / (I_t + I_pre + 1e-6), pre = the first checkpoint.
function effectAt(run, at, row) {
  const now = shareAt(run, at, row), first = shareAt(run, 0, row);
  return (now - first) / (now + first + 1e-6);
}

// A.6 over checkpoints: the mean of E over those after the first, up to this one.
function meanEffectAt(run, at, row) {
  if (!run.meanEffect) {
    run.meanEffect = new Float32Array(run.level.length);
    for (let head = 0; head < run.rows; head++) {
      for (let time = 1, sum = 0; time < run.times; time++) {
        sum += effectAt(run, time, head);
        run.meanEffect[time * run.rows + head] = sum / time;
      }
    }
  }
  return run.meanEffect[at * run.rows + row];
}

function nearestCheckpoint(run, step) {
  let best = 0;
  for (let at = 1; at < run.times; at++) {
    if (Math.abs(run.steps[at] - step) <= Math.abs(run.steps[best] - step)) best = at;
  }
  return best;
}

// -- what passes the filters, and in which order ------------------------------------------------

const FILTERS = {
  all: () => true,
  ever: (run, row) => run.activeAt[row] > 0,
  born: (run, row) => run.cohortOf[row] >= 0,
  base: (run, row) => run.isBase[row],
  end: (run, row) => isActive(run, run.times - 1, row),
};

function inLayers(run, row, view) {
  const layer = Math.floor(row / run.heads);
  return view.low <= layer && layer <= view.high;
}

const passes = (run, row, view) => inLayers(run, row, view) && FILTERS[view.show](run, row);

// Born heads by birth, then base heads, then heads that never were; the longest active first.
function birthKey(run, row) {
  const cohort = run.isBase[row] ? run.times : run.cohortOf[row] < 0 ? run.times + 1 :
    run.cohortOf[row];
  return cohort + 1 - run.activeAt[row] / (run.times + 1);
}

function rowsOnView(run, view) {
  const end = run.times - 1;
  const keys = {
    layer: () => 0,
    birth: row => birthKey(run, row),
    importance: row => -shareAt(run, end, row),
    frequency: row => -probesAt(run, end, row),
    effect: row => -effectAt(run, end, row),
  };
  const key = Array.from({length: run.rows}, (_, row) => keys[view.order](row));
  return key.map((_, row) => row).filter(row => passes(run, row, view))
    .sort((a, b) => key[a] - key[b] || a - b);
}

// Of the layers on view: active heads of each cohort group, newly born and retained, a checkpoint.
function tally(run, view) {
  const zeros = () => new Int32Array(run.times);
  const out = {groups: run.cohort_groups.map(zeros), sizes: run.cohort_groups.map(() => 0),
    born: zeros(), retained: zeros(), emergent: zeros(), base: 0};
  for (let row = 0; row < run.rows; row++) {
    if (!run.activeAt[row] || !inLayers(run, row, view)) continue;
    const group = run.groupOf[row];
    if (group >= 0) {
      out.sizes[group]++;
      out.born[run.cohortOf[row]]++;
    } else {
      out.base++;
    }
    for (let at = 0; at < run.times; at++) {
      if (!isActive(run, at, row)) continue;
      if (group < 0) {
        out.retained[at]++;
      } else {
        out.groups[group][at]++;
        out.emergent[at]++;
      }
    }
  }
  return out;
}

// -- numbers as text ----------------------------------------------------------------------------

function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return sign(String(value));
  return sign(String(Number(value.toPrecision(4))));
}

const sign = text => text.replace("-", "\u2212");
const percent = value => value === 0 ? "0 %" : number(Number((100 * value).toPrecision(3))) + " %";
const signed = value => (value > 0 ? "+" : "") + sign(value.toFixed(2));

function probesText(run, at, row) {
  const share = probesAt(run, at, row);
  return run.level_unit === run.probes ? Math.round(share * run.probes) + " of " + run.probes :
    percent(share);
}

function kindText(run, row) {
  if (run.isBase[row]) return "base head";
  return run.cohortOf[row] < 0 ? "never active" : "born at step " + run.steps[run.cohortOf[row]];
}

function historyText(run, row) {
  const all = run.history[row], more = all.length - FIRST_STEPS;
  return all.slice(0, FIRST_STEPS).map(event => event.kind + " " + run.steps[event.at])
    .join(" \u00b7 ") + (more > 0 ? " and " + more + " more" : "");
}
