// Reading: the arrays of a run as they were sent, and what the views derive from them.
// A "row" is a head, layer * heads + head. A "cell" is checkpoint * rows + row.

const bit = (bytes, index) => (bytes[index >> 3] >> (7 - (index & 7))) & 1;

// Numbers whose lowest bytes stand first, then all second ones, and so on.
function joinPlanes(bytes, Kind) {
  const width = Kind.BYTES_PER_ELEMENT, count = bytes.length / width;
  const out = new Uint8Array(bytes.length);
  for (let i = 0; i < count; i++) {
    for (let plane = 0; plane < width; plane++) out[i * width + plane] = bytes[plane * count + i];
  }
  return new Kind(out.buffer);
}

// In place: each number was sent less the one before.
function sumUp(numbers) {
  for (let i = 1; i < numbers.length; i++) numbers[i] += numbers[i - 1];
  return numbers;
}

function decodeRun(run, rule) {
  run.rows = run.layers * run.heads;
  run.times = run.steps.length;
  const counts = Array.from(joinPlanes(run.counts, Float32Array), value =>
    Number.isFinite(value) ? Number(value.toPrecision(5)) : null);
  run.shared = Object.fromEntries(run.count_names.map((name, i) =>
    [name, counts.slice(i * run.times, (i + 1) * run.times)]));
  run.unscoredAt = new Set(run.unscored);
  decodeCells(run);
  decodeLooks(run);
  decodeShares(run);
  decodeShift(run);
  decodeLog(run);
  decodeTurnover(run);
  applyRule(run, rule);
  decodeAxis(run);
  return run;
}

// Sent head by head; here checkpoint by checkpoint.
function decodeCells(run) {
  const {mask, levels} = run;
  const roots = sumUp(joinPlanes(run.importance, Uint16Array));
  run.level = new Uint8Array(run.rows * run.times);
  run.share = new Float32Array(run.rows * run.times);
  run.isHeld = new Uint8Array(run.rows * run.times);
  let next = 0;
  for (let row = 0; row < run.rows; row++) {
    let isHeld = 0;
    for (let at = 0; at < run.times; at++) {
      isHeld ^= bit(mask, row * run.times + at);
      if (!isHeld) continue;
      const root = roots[next] / 4095, cell = at * run.rows + row;
      run.isHeld[cell] = 1;
      run.level[cell] = levels[next++];
      run.share[cell] = run.importance_max * root * root;
    }
  }
}

// E of the embedding, of each layer's attention, of each layer's MLP: part * times + checkpoint.
function decodeShift(run) {
  const bytes = new Int8Array(run.shift.buffer);
  run.shiftOf = new Float32Array(bytes.length);
  for (let start = 0; start < bytes.length; start += run.times) {
    const part = sumUp(bytes.subarray(start, start + run.times));
    part.forEach((value, at) => { run.shiftOf[start + at] = value / 127; });
  }
}

// Six numbers a checkpoint, each with its interval: value, lower end, upper end.
const TURNOVER = ["edges moved since the checkpoint before", "edges moved since the first checkpoint",
  "stability of edges between probes (Jaccard)", "heads moved since the checkpoint before",
  "heads moved since the first checkpoint", "stability of heads between probes (Jaccard)"];

function decodeTurnover(run) {
  const columns = Array.from({length: 3 * TURNOVER.length}, (_, column) => {
    const bytes = sumUp(run.turnover.subarray(column * run.times, (column + 1) * run.times));
    return Array.from(bytes, byte => byte === 255 ? null : byte / 254);
  });
  run.turnovers = TURNOVER.map((name, i) => ({name, values: columns[3 * i],
    low: columns[3 * i + 1], high: columns[3 * i + 2]}));
  if (!run.grid) return;
  for (const name of ["half", "any"]) run.grid[name] = joinPlanes(run.grid[name], Uint16Array);
}

function decodeLog(run) {
  const steps = joinPlanes(run.metric_steps, Uint32Array);
  const values = joinPlanes(run.metric_values, Float32Array);
  let next = 0;
  run.log = run.metrics.map(({name, count, thinned_from: thinnedFrom}) => {
    const from = next, to = next += count;
    return {name, steps: Array.from(sumUp(steps.subarray(from, to))),
      values: Array.from(values.subarray(from, to)), thinnedFrom};
  });
  run.logged = run.log.length;
}

// Columns reach half-way to their neighbours, the first begins and the last ends at its step; a step
// that could not be read keeps its own column.
function decodeAxis(run) {
  const columns = run.steps.map((step, at) => ({step, at}))
    .concat(run.missing_steps.map(step => ({step, at: -1}))).sort((a, b) => a.step - b.step);
  const pad = columns.length > 1 ? 0 : 0.5;
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
  open: (run, row) => run.undecidedAt[row] > 0,
};

function inLayers(run, row, view) {
  const layer = Math.floor(row / run.heads);
  return view.low <= layer && layer <= view.high;
}

const passes = (run, row, view) => inLayers(run, row, view) && FILTERS[view.show](run, row);

// Born heads by birth, then base heads, then all others; the longest active first.
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
    frequency: row => -useAt(run, end, row),
    effect: row => -effectAt(run, end, row),
  };
  const key = Array.from({length: run.rows}, (_, row) => keys[view.order](row));
  return key.map((_, row) => row).filter(row => passes(run, row, view))
    .sort((a, b) => key[a] - key[b] || a - b);
}

// Of the layers on view: active heads of each cohort group, newly born, retained and undecided, a
// checkpoint.
function tally(run, view) {
  const zeros = () => new Int32Array(run.times);
  const out = {groups: run.cohort_groups.map(zeros), sizes: run.cohort_groups.map(() => 0),
    born: zeros(), retained: zeros(), emergent: zeros(), undecided: zeros(), doubted: zeros(),
    base: 0};
  for (let row = 0; row < run.rows; row++) {
    if (!(run.activeAt[row] || run.undecidedAt[row]) || !inLayers(run, row, view)) continue;
    const group = run.groupOf[row];
    if (group >= 0) {
      out.sizes[group]++;
      out.born[run.cohortOf[row]]++;
    } else if (run.isBase[row]) {
      out.base++;
    }
    for (let at = 0; at < run.times; at++) {
      if (isUndecided(run, at, row)) {
        out.undecided[at]++;
        if (group >= 0 && run.cohortOf[row] < at) out.doubted[at]++;
      }
      if (!isActive(run, at, row)) continue;
      if (group >= 0) {
        out.groups[group][at]++;
        out.emergent[at]++;
      } else if (run.isBase[row]) {
        out.retained[at]++;
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

function historyText(run, row) {
  const all = run.history[row], more = all.length - FIRST_STEPS;
  return all.slice(0, FIRST_STEPS).map(event => event.kind + " " + run.steps[event.at] +
    sinceText(run, event))
    .join(" \u00b7 ") + (more > 0 ? " and " + more + " more" : "");
}
