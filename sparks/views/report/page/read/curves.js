// Curves over checkpoints that a reader can choose beside the trainer's log.
// A curve: {name, group, steps, values, low, high, isNull (the null's band belongs to it), note}.

const OWN_CURVES = [
  ["edges", "kept edges a probe (mean)"],
  ["loss_corrupted", "KL clean \u2016 corrupted (mean, nats)"],
  ["faithfulness", "faithfulness of the circuits (median)"],
  ["completeness_gap_median", "completeness gap (median)"],
  ["completeness_gap_max", "completeness gap (worst probe)"],
  ["seconds", "seconds a snapshot"],
];
const BAND_OF_ACTIVE = "Band: up to the active and undecided heads.";
const BAND_OF_PROBES = "Band: 95 % interval over probes.";

function ownCurves(run) {
  const {sums} = run, add = (a, b) => a.map((value, at) => value + b[at]);
  const isTested = run.rule !== "paper";
  const heads = [{name: "active heads", values: sums.active,
    ...isTested ? {low: sums.active, high: add(sums.active, sums.undecided),
      note: BAND_OF_ACTIVE} : {}},
  {name: "emergent heads", values: sums.emergent, isNull: Boolean(run.null)},
  {name: "births a checkpoint", values: sums.born, isNull: Boolean(run.null)},
  {name: "base heads retained", values: sums.retained},
  ...isTested ? [{name: "undecided heads", values: sums.undecided}] : []];
  const circuits = [...OWN_CURVES.map(([key, name]) => ({name, values: run.shared[key]})),
    {name: "points a probe, m (median)", values: run.shared.points_median,
      low: run.shared.points_min, high: run.shared.points_max,
      note: "Band: from the fewest to the most points of a probe."},
    ...run.turnovers.map(curve => ({...curve, note: BAND_OF_PROBES}))];
  const {control} = run, ofControl = control ? [
    {name: "control: active heads", values: control.active, low: control.active,
      high: add(control.active, control.undecided),
      note: "On the control probes. Line: active heads; band: up to the active and undecided ones."},
    {name: "control: emergent heads", values: control.emergent, note: "On the control probes."},
    {name: "control: births a checkpoint", values: control.born, note: "On the control probes."},
  ] : [];
  return [["heads", heads], ["circuits", circuits], ["control probes", ofControl]]
    .flatMap(([group, found]) => found.map(curve => atKnown(run, {...curve, group})))
    .filter(curve => curve.values.length);
}

// Without the checkpoints at which there is no number.
function atKnown(run, curve) {
  const known = run.steps.map((_, at) => at).filter(at => curve.values[at] !== null);
  const pick = values => values && known.map(at => values[at]);
  return {...curve, steps: known.map(at => run.steps[at]), values: pick(curve.values),
    low: pick(curve.low), high: pick(curve.high)};
}

function curveText(run, curve, step) {
  if (!curve) return "";
  let best = 0;
  curve.steps.forEach((other, i) => {
    if (Math.abs(other - step) <= Math.abs(curve.steps[best] - step)) best = i;
  });
  const ends = curve.low && curve.low[best] !== null ?
    " (" + number(curve.low[best]) + "\u2013" + number(curve.high[best]) + ")" : "";
  return "step " + curve.steps[best] + ": " + number(curve.values[best]) + ends +
    (curve.isNull ? "; null " + nullText(run) : "");
}

const nullText = run => [0, 2].map(end => number(Math.round(10 * run.null.births[end]) / 10))
  .join("\u2013");

function curveNote(run, curve) {
  if (!curve) return "";
  return (curve.note ? " " + curve.note : "") + (curve.isNull ? " Dotted band: what an unchanged " +
    "model gives (median, and the middle 95 %), from " + run.null.source + "." : "");
}
