// Colours: of cohorts, magnitudes, use and change. Those that differ by theme come from CSS.

const COHORT_COLOURS = [  // Okabe-Ito without black, vermilion, and the orange of what is chosen
  ["#56b4e9", "#000"], ["#0072b2", "#fff"], ["#009e73", "#000"], ["#cc79a7", "#000"],
  ["#f0e442", "#000"], ["#7a4a1f", "#fff"],
];
const CIVIDIS = ["#00224e", "#003170", "#2a3f6d", "#434e6c", "#575d6d", "#6a6c71", "#7d7c78",
  "#918b78", "#a59c74", "#bcae6c", "#d2c060", "#e9d34e", "#fee838"].map(parseColour);

function parseColour(hex) {
  const value = parseInt(hex.trim().slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

const mix = (a, b, part) => a.map((value, i) => Math.round(value + (b[i] - value) * part));
const cssColour = rgb => "rgb(" + rgb.join(",") + ")";

function readPalette() {
  const style = getComputedStyle(document.documentElement), out = {};
  for (const name of ["paper", "ink", "soft", "line", "empty", "missing", "hatch", "base", "undated",
    "born", "minus", "plus", "zero", "mark"]) {
    out[name] = style.getPropertyValue("--" + name).trim();
    out[name + "Rgb"] = parseColour(out[name]);
  }
  return out;
}

function cividis(part) {
  const place = Math.min(1, Math.max(0, part)) * (CIVIDIS.length - 1);
  const low = Math.min(CIVIDIS.length - 2, Math.floor(place));
  return mix(CIVIDIS[low], CIVIDIS[low + 1], place - low);
}

// How much of the circuits hold the head: emergent heads blue, all others grey, for they are no news,
// but for heads whose birth is not known: violet. A trace where one fell silent.
function usageColour(palette, full, part, wasActive) {
  if (part > 0) return mix(palette.emptyRgb, full, 0.3 + 0.7 * part);
  return wasActive ? mix(palette.emptyRgb, full, 0.1) : palette.emptyRgb;
}

function effectColour(palette, effect) {
  return mix(palette.zeroRgb, effect < 0 ? palette.minusRgb : palette.plusRgb, Math.abs(effect));
}

const importancePart = (run, value) =>
  run.importance_max > 0 ? Math.sqrt(value / run.importance_max) : 0;

function cellColour(run, palette, mode, at, row) {
  if (mode === "importance") return cividis(importancePart(run, shareAt(run, at, row)));
  if (mode === "effect") return effectColour(palette, effectAt(run, at, row));
  if (mode === "mean") return effectColour(palette, meanEffectAt(run, at, row));
  const cohort = run.cohortOf[row], wasBorn = cohort >= 0 && cohort <= at;
  const full = run.isBase[row] ? palette.baseRgb : wasBorn ? palette.bornRgb :
    run.isUndated[row] ? palette.undatedRgb : palette.missingRgb;
  const isShown = isActive(run, at, row) || isUndecided(run, at, row);
  return usageColour(palette, full, isShown ? useAt(run, at, row) : 0, run.isBase[row] || wasBorn);
}

// Of lines and marks of a head.
const headColour = (run, row, palette) => run.cohortOf[row] >= 0 ? palette.born :
  run.isUndated[row] ? palette.undated : palette.base;
