// What all plots stand on: canvas, axes, lines, bands.

// Widths are read all at once, before anything is drawn: a read after a write makes the browser lay
// out the whole page again.
const widths = new Map();

function measure(holders) {
  for (const holder of holders) widths.set(holder, holder.clientWidth);
}

function sheet(holder, height, width = widths.get(holder)) {
  let canvas = holder.querySelector("canvas");
  if (!canvas) {
    canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    holder.prepend(canvas);
  }
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "11.5px system-ui, sans-serif";
  return {pen, width, height, ratio};
}

// Every plot over time shares these margins, so that one step has one place.
function timeArea(width, top, height) {
  const left = width < 480 ? 54 : 60;
  return {left, right: width - 12, top, bottom: top + height};
}

const placeOf = (area, view, step) =>
  area.left + (step - view.from) / (view.to - view.from) * (area.right - area.left);
const stepAt = (area, view, x) =>
  view.from + (x - area.left) / (area.right - area.left) * (view.to - view.from);

function ticks(low, high, about, whole) {
  if (!(high > low)) return [low];
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  let stride = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  if (whole) stride = Math.max(1, Math.round(stride));
  const out = [];
  for (let i = Math.ceil(low / stride - 1e-9); i * stride <= high + stride * 1e-9; i++) {
    out.push(Number((i * stride).toPrecision(12)));
  }
  return out;
}

function drawStepAxis(pen, area, view, palette, grid, title) {
  pen.textBaseline = "top";
  pen.textAlign = "center";
  for (const step of ticks(Math.max(0, view.from), view.to, (area.right - area.left) / 84, true)) {
    const x = Math.round(placeOf(area, view, step)) + 0.5;
    if (x < area.left - 1 || x > area.right + 1) continue;
    pen.fillStyle = palette.soft;
    const reach = area.right + 11 - pen.measureText(step).width / 2;
    pen.fillText(String(step), Math.min(x, reach), area.bottom + 6);
    pen.strokeStyle = palette.line;
    pen.beginPath();
    pen.moveTo(x, grid ? area.top : area.bottom);
    pen.lineTo(x, area.bottom + 3);
    pen.stroke();
  }
  if (!title) return;
  pen.fillStyle = palette.soft;
  pen.fillText("training step", (area.left + area.right) / 2, area.bottom + 21);
}

function drawValueAxis(pen, area, low, high, palette, whole) {
  const y = value => area.bottom - (value - low) / (high - low || 1) * (area.bottom - area.top);
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const value of ticks(low, high, Math.max(2, (area.bottom - area.top) / 42), whole)) {
    pen.strokeStyle = palette.line;
    pen.beginPath();
    pen.moveTo(area.left, Math.round(y(value)) + 0.5);
    pen.lineTo(area.right, Math.round(y(value)) + 0.5);
    pen.stroke();
    pen.fillStyle = palette.soft;
    pen.fillText(shortNumber(value), area.left - 8, y(value));
  }
  return y;
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return sign(value.toExponential(0));
  return sign(String(value));
}

function clipTo(pen, area, draw) {
  pen.save();
  pen.beginPath();
  pen.rect(area.left, area.top - 4, area.right - area.left, area.bottom - area.top + 8);
  pen.clip();
  draw();
  pen.restore();
}

function drawLine(pen, points, colour, dash, dots) {
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.setLineDash(dash);
  pen.beginPath();
  points.forEach(([x, y], i) => i ? pen.lineTo(x, y) : pen.moveTo(x, y));
  pen.stroke();
  pen.setLineDash([]);
  pen.lineWidth = 1;
  if (!dots) return;
  for (const [x, y] of points) {
    pen.beginPath();
    pen.arc(x, y, 2.5, 0, 7);
    pen.fill();
  }
}

// From `low` to `high`, over the points at which both are known.
function drawEnds(pen, x, low, high, colour) {
  const known = x.map((_, i) => i).filter(i => Number.isFinite(low[i]) && Number.isFinite(high[i]));
  if (!known.length) return;
  pen.save();
  pen.globalAlpha = 0.24;
  pen.fillStyle = colour;
  if (known.length === 1) {
    pen.fillRect(x[known[0]] - 3, high[known[0]], 6, low[known[0]] - high[known[0]]);
  }
  pen.beginPath();
  for (const i of known) pen.lineTo(x[i], high[i]);
  for (const i of known.reverse()) pen.lineTo(x[i], low[i]);
  pen.fill();
  pen.restore();
}

// What an unchanged model gives, all along the axis: dotted edges, a line at the median.
function drawNull(pen, area, births, y, palette) {
  const [low, middle, high] = births.map(y);
  pen.save();
  pen.fillStyle = pen.strokeStyle = palette.soft;
  pen.globalAlpha = 0.2;
  pen.fillRect(area.left, high, area.right - area.left, Math.max(1, low - high));
  pen.globalAlpha = 1;
  for (const [place, dash] of [[low, [1, 3]], [high, [1, 3]], [middle, [8, 3]]]) {
    pen.setLineDash(dash);
    pen.beginPath();
    pen.moveTo(area.left, place);
    pen.lineTo(area.right, place);
    pen.stroke();
  }
  pen.restore();
}
