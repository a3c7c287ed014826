// What each rule says of the heads, and the change from one rule to the other.
// A look: {active, undecided (a byte a cell), isBase, isUndated, cohortOf, history, ...}.

const RULES = ["growth", "paper"];
const SPECIFICITY = ["", "specific", "shared", "undecided"];

function decodeLooks(run) {
  for (const rule of RULES) {
    const look = run.looks[rule];
    Object.assign(look, rule === "paper" ? paperStates(run) : growthStates(run, look));
    finishLook(run, look);
  }
}

// From here on the run is seen by this rule.
function applyRule(run, rule) {
  run.rule = rule;
  Object.assign(run, run.looks[rule], {counts: {...run.shared, ...run.looks[rule].sums}});
  run.curves = [...run.log, ...ownCurves(run)];
}

const bitsOf = (run, bytes) => Array.from({length: run.rows}, (_, row) => bit(bytes, row) === 1);

// Bits sent head by head, each 1 where it differs from the checkpoint before.
function unpackTurns(run, turns) {
  const out = new Uint8Array(run.rows * run.times);
  for (let row = 0; row < run.rows; row++) {
    for (let at = 0, holds = 0; at < run.times; at++) {
      holds ^= bit(turns, row * run.times + at);
      out[at * run.rows + row] = holds;
    }
  }
  return out;
}

function growthStates(run, sent) {
  const events = joinPlanes(sent.events, Uint16Array), count = events.length / 4;
  const history = Array.from({length: run.rows}, () => []);
  for (let i = 0; i < count; i++) {
    const at = events[count + i];
    history[events[i]].push({at, kind: run.event_kinds[events[2 * count + i]],
      onset: at - events[3 * count + i]});
  }
  return {active: unpackTurns(run, sent.active), undecided: unpackTurns(run, sent.undecided),
    isBase: bitsOf(run, sent.base), isUndated: bitsOf(run, sent.undated),
    cohortOf: joinPlanes(sent.cohort, Int16Array), history};
}

// Active: in the circuit of any probe. Base: active at the first checkpoint.
function paperStates(run) {
  const active = run.level.map(level => level > 0 ? 1 : 0);
  const isBase = Array.from({length: run.rows}, (_, row) => active[row] === 1);
  const cohortOf = new Int16Array(run.rows).fill(-1);
  const history = isBase.map((base, row) => {
    const events = [];
    for (let at = 1; at < run.times; at++) {
      const now = active[at * run.rows + row];
      if (now === active[(at - 1) * run.rows + row]) continue;
      const isBirth = now && !base && cohortOf[row] < 0;
      if (isBirth) cohortOf[row] = at;
      events.push({at, onset: at, kind: isBirth ? "born" : now ? base ? "returned" : "revived" :
        base ? "silenced" : "pruned"});
    }
    return events;
  });
  return {active, undecided: new Uint8Array(active.length), isBase,
    isUndated: isBase.map(() => false), cohortOf, history};
}

// Sums over heads and checkpoints.
function finishLook(run, look) {
  look.groupOf = Array.from(look.cohortOf, cohort => cohort < 0 ? -1 :
    look.cohort_groups.findIndex(([first, last]) => first <= cohort && cohort <= last));
  look.groupNames = look.cohort_groups.map(([first, last]) => first === last ?
    String(run.steps[first]) : run.steps[first] + "\u2013" + run.steps[last]);
  look.activeAt = new Int32Array(run.rows);  // how many checkpoints hold the head
  look.undecidedAt = new Int32Array(run.rows);
  const sums = {};
  for (const name of ["active", "undecided", "emergent", "retained", ...run.event_kinds]) {
    sums[name] = new Array(run.times).fill(0);
  }
  for (let cell = 0; cell < look.active.length; cell++) {
    const row = cell % run.rows, at = (cell - row) / run.rows;
    if (look.undecided[cell]) {
      look.undecidedAt[row]++;
      sums.undecided[at]++;
    }
    if (!look.active[cell]) continue;
    look.activeAt[row]++;
    sums.active[at]++;
    if (look.isBase[row]) sums.retained[at]++;
    if (look.cohortOf[row] >= 0) sums.emergent[at]++;
  }
  for (const {at, kind} of look.history.flat()) sums[kind][at]++;
  look.sums = sums;
  look.specificOf = look.specificity;
}

const isActive = (run, at, row) => run.active[at * run.rows + row] === 1;
const isUndecided = (run, at, row) => run.undecided[at * run.rows + row] === 1;
const stateText = (run, at, row) => isActive(run, at, row) ? "active" :
  isUndecided(run, at, row) ? "undecided" : "inactive";

// The birth, where it was settled later than it shows.
const lateBirth = (run, row) =>
  run.history[row].find(event => event.kind === "born" && event.onset < event.at) || null;
const sinceText = (run, event) => event.onset < event.at ?
  ", shows since " + run.steps[event.onset] : "";

function kindText(run, row) {
  if (run.isBase[row]) return "base head";
  if (run.cohortOf[row] >= 0) {
    const late = lateBirth(run, row);
    return "born at step " + run.steps[run.cohortOf[row]] +
      (late ? ", settled late: shows since step " + run.steps[late.onset] : "");
  }
  if (run.isUndated[row]) return "active as soon as one could tell";
  return run.undecidedAt[row] ? "never active for sure" : "never active";
}

function specificText(run, row) {
  const word = run.specificOf ? SPECIFICITY[run.specificOf[row]] : "";
  return {specific: "specific: not born on the control probes", shared:
    "shared: born or active on the control probes too", undecided:
    "undecided: the control probes cannot tell"}[word] || "";
}

// -- shares and intervals -----------------------------------------------------------------------

// Of all score mass, in even shares, as logarithms to the base 2. Sent head by head, as differences
// in time; NaN of what was not sent.
function decodeShares(run) {
  const {growth} = run.looks, near = new Uint8Array(run.rows), everHeld = new Uint8Array(run.rows);
  for (let cell = 0; cell < run.level.length; cell++) {
    if (growth.active[cell] || growth.undecided[cell]) near[cell % run.rows] = 1;
    if (run.level[cell]) everHeld[cell % run.rows] = 1;
  }
  const sent = new Int8Array(run.shares.buffer), halves = run.share_halves;
  run.octaves = new Float32Array(run.rows * run.times).fill(NaN);
  run.halves = new Float32Array(run.rows * run.times).fill(NaN);
  run.isKnown = near.map((isNear, row) => !run.is_large || isNear || everHeld[row] ? 1 : 0);
  for (let row = 0, next = 0, own = 0; row < run.rows; row++) {
    for (let at = 0, sum = 0, half = 0; run.isKnown[row] && at < run.times; at++) {
      sum = (sum + sent[next++]) << 24 >> 24;
      run.octaves[at * run.rows + row] = sum / run.octave;
      if (!near[row] || !hasEnds(run, at)) continue;
      half = half + halves[own++] & 255;
      run.halves[at * run.rows + row] = half / run.octave;
    }
  }
  decodeEnds(run);
}

// Ends of the interval of importance, as shares of it: down * I, I / up.
function decodeEnds(run) {
  const sent = run.importance_ends, half = sent.length / 2;
  run.ends = [new Float32Array(run.level.length), new Float32Array(run.level.length)];
  let next = 0;
  for (let row = 0; row < run.rows; row++) {
    for (let at = run.is_large ? run.times - 1 : 0; at < run.times; at++) {
      const cell = at * run.rows + row;
      if (!run.isHeld[cell]) continue;
      run.ends[0][cell] = run.share[cell] * (sent[next] / run.end_unit) ** 2;
      run.ends[1][cell] = run.share[cell] / (Math.max(0.5, sent[half + next++]) / run.end_unit) ** 2;
    }
  }
}

// In even shares of all score mass.
const massAt = (run, at, row) => 2 ** run.octaves[at * run.rows + row];

// NaN of heads that are never active or undecided, and of what was not sent.
const massEnds = (run, at, row) => [-1, 1].map(way =>
  2 ** (run.octaves[at * run.rows + row] + way * run.halves[at * run.rows + row]));

const hasEnds = (run, at) => !run.is_large || at === run.times - 1;
const endsAt = (run, at, row) => run.ends.map(end => end[at * run.rows + row]);

// From 0 to 1: one half is an even share; by the paper's rule the share of circuits that hold it.
function useAt(run, at, row) {
  if (run.rule === "paper") return probesAt(run, at, row);
  const mass = massAt(run, at, row) || 0;
  return mass / (1 + mass);
}

function massText(run, at, row) {
  const mass = massAt(run, at, row), short = value => number(Number(value.toPrecision(2)));
  if (Number.isNaN(mass)) return "not in this page: never active or undecided";
  const [low, high] = massEnds(run, at, row);
  return short(mass) + (Number.isNaN(low) ? "" : " (" + short(low) + "\u2013" + short(high) + ")");
}

function importanceText(run, at, row) {
  if (run.unscoredAt.has(at)) return "not measured";
  const share = shareAt(run, at, row);
  if (!hasEnds(run, at)) return percent(share) + " (interval at the last checkpoint only)";
  const [low, high] = endsAt(run, at, row).map(value => number(Number((100 * value).toPrecision(2))));
  return percent(share) + (share > 0 ? " (" + low + "\u2013" + high + " %)" : "");
}
