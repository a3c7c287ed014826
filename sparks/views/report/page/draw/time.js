// Drawing over training steps: the curve, the cohorts, heads x checkpoints.

function drawCurve(holder, run, curve, view, palette) {
  const {pen, width, height} = sheet(holder, 138);
  const area = timeArea(width, 10, height - 32);
  if (!curve) {
    drawStepAxis(pen, area, view, palette, true, false);
    return area;
  }
  const within = values => values.filter((value, i) => Number.isFinite(value) &&
    view.from <= curve.steps[i] && curve.steps[i] <= view.to);
  const inside = within(curve.values);
  const seen = [...inside.length ? inside : curve.values, ...within(curve.low || []),
    ...within(curve.high || []), ...curve.isNull ? run.null.births : []];
  let low = Math.min(...seen), high = Math.max(...seen);
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  low -= air;
  high += air;
  drawStepAxis(pen, area, view, palette, true, false);
  const y = drawValueAxis(pen, area, low, high, palette, false);
  const x = curve.steps.map(step => placeOf(area, view, step));
  clipTo(pen, area, () => {
    if (curve.isNull) drawNull(pen, area, run.null.births, y, palette);
    const ends = end => end.map(value => value === null ? NaN : y(value));
    if (curve.low) drawEnds(pen, x, ends(curve.low), ends(curve.high), palette.soft);
    drawLine(pen, x.map((place, i) => [place, y(curve.values[i])]), palette.ink, [],
      inside.length < 45);
  });
  return area;
}

function drawCohorts(holder, run, sums, view, palette) {
  const {pen, width, height} = sheet(holder, 250);
  const area = timeArea(width, 10, height - 32);
  const tops = sums.emergent.map((count, at) => count + sums.doubted[at]);
  const high = Math.max(1, ...tops, ...sums.retained, ...sums.born,
    ...run.null ? run.null.births : []) * 1.05;
  drawStepAxis(pen, area, view, palette, true, false);
  const y = drawValueAxis(pen, area, 0, high, palette, true);
  const x = run.steps.map(step => placeOf(area, view, step));
  clipTo(pen, area, () => {
    const floor = new Array(run.times).fill(0);
    sums.groups.forEach((counts, group) => {
      const top = floor.map((value, at) => value + counts[at]);
      drawBand(pen, x, floor.map(y), top.map(y), COHORT_COLOURS[group], palette);
      if (counts.length > 1) labelBand(pen, area, x, floor.map(y), top.map(y), group);
      top.forEach((value, at) => { floor[at] = value; });
    });
    if (sums.doubted.some(count => count)) {
      drawBand(pen, x, floor.map(y), tops.map(y), [doubt(pen, palette)], palette);
    }
    if (run.null) drawNull(pen, area, run.null.births, y, palette);
    drawGaps(pen, run, view, area, palette, 0.35);
    drawLine(pen, x.map((place, at) => [place, y(sums.retained[at])]), palette.base, [6, 4],
      run.times === 1);
    drawLine(pen, x.map((place, at) => [place, y(sums.born[at])]), palette.ink, [],
      run.times < 45);
  });
  return area;
}

function drawBand(pen, x, floor, top, [colour], palette) {
  pen.beginPath();
  x.forEach((place, at) => at ? pen.lineTo(place, top[at]) : pen.moveTo(place, top[at]));
  for (let at = x.length - 1; at >= 0; at--) pen.lineTo(x[at], floor[at]);
  pen.closePath();
  pen.fillStyle = colour;
  pen.fill();
  pen.strokeStyle = palette.paper;
  pen.stroke();
}

// The group's number, where its band is thick enough over the width of the digit.
function labelBand(pen, area, x, floor, top, group) {
  const thick = place => between(x, floor, place) - between(x, top, place);
  let best = null, most = 13;
  for (let place = area.left + 9; place <= area.right - 9; place += 3) {
    const room = Math.min(thick(place - 6), thick(place), thick(place + 6));
    if (room >= most) [best, most] = [place, room];
  }
  if (best === null) return;
  pen.fillStyle = COHORT_COLOURS[group][1];
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.font = "600 11.5px system-ui, sans-serif";
  pen.fillText(String(group + 1), best, (between(x, floor, best) + between(x, top, best)) / 2 + 1);
  pen.font = "11.5px system-ui, sans-serif";
}

// Linear between points; NaN outside of them.
function between(x, y, place) {
  const next = x.findIndex(value => value >= place);
  if (next <= 0) return next === 0 && x[0] === place ? y[0] : NaN;
  const part = (place - x[next - 1]) / (x[next] - x[next - 1]);
  return y[next - 1] + (y[next] - y[next - 1]) * part;
}

function hatch(pen, palette) {
  return stripes(pen, 6, palette.missing, [[palette.hatch, 0]]);
}

// Over cells that are undecided: a grey and a light stripe, seen on every colour, and quiet.
const doubt = (pen, palette) => stripes(pen, 7, null, [[palette.soft, 0], [palette.paper, 1.6]]);

function stripes(pen, size, ground, lines) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = size;
  const ink = tile.getContext("2d");
  ink.fillStyle = ground || "transparent";
  ink.fillRect(0, 0, size, size);
  ink.lineWidth = lines.length > 1 ? 1.3 : 1;
  for (const [colour, shift] of lines) {
    ink.strokeStyle = colour;
    for (let start = -2 * size; start <= size; start += size) {
      ink.beginPath();
      ink.moveTo(start + shift, size);
      ink.lineTo(start + shift + size, 0);
      ink.stroke();
    }
  }
  return pen.createPattern(tile, "repeat");
}

// Columns without a measurement; `unscored` ones have members but no importance.
function drawGaps(pen, run, view, area, palette, opacity, unscored) {
  const gaps = run.columns.filter(c => c.at < 0 || (unscored && run.unscoredAt.has(c.at)));
  if (!gaps.length) return;
  pen.save();
  pen.fillStyle = hatch(pen, palette);
  pen.globalAlpha = opacity;
  for (const column of gaps) {
    const from = placeOf(area, view, column.from), to = placeOf(area, view, column.to);
    pen.fillRect(from, area.top, to - from, area.bottom - area.top);
  }
  pen.restore();
}

const rowHeight = count => Math.min(16, Math.max(720 / Math.max(count, 720), 600 / count));

function drawRows(holder, run, rows, view, palette) {
  const body = rows.length ? Math.max(24, Math.round(rows.length * rowHeight(rows.length))) : 40;
  const {pen, width, ratio} = sheet(holder, body + 42);
  const area = timeArea(width, 4, body);
  area.rowHeight = body / Math.max(1, rows.length);
  drawStepAxis(pen, area, view, palette, false, true);
  if (!rows.length) {
    pen.textAlign = "left";
    pen.fillText("No head passes the filter.", area.left, area.top + 12);
    return area;
  }
  clipTo(pen, area, () => {
    paintCells(pen, run, rows, view, area, palette, ratio);
    drawGaps(pen, run, view, area, palette, 1, view.colour !== "frequency");
  });
  if (area.rowHeight >= 5) separateRows(pen, area, rows.length, palette);
  paintStrip(pen, run, rows, area, palette);
  labelRows(pen, run, rows, view, area, palette);
  return area;
}

// Two small pictures, a pixel a cell, kept until something else than the zoom changes: colours, and
// who is undecided. Where there are more rows than pixels, a pixel shows the strongest of its rows.
let rowsPicture = {};

function paintCells(pen, run, rows, view, area, palette, ratio) {
  const lines = Math.min(rows.length, Math.floor((area.bottom - area.top) * ratio));
  const key = [run.name, run.rule, view.colour, view.show, view.order, view.low, view.high, lines,
    palette.paper].join();
  if (rowsPicture.key !== key) {
    const rank = (at, row) => 2 * run.active[at * run.rows + row] +
      run.undecided[at * run.rows + row] + useAt(run, at, row);
    const rowAt = (line, at) => {
      const first = Math.floor(line * rows.length / lines);
      const stop = Math.max(first + 1, Math.floor((line + 1) * rows.length / lines));
      let row = rows[first];
      for (let i = first + 1; i < stop; i++) {
        if (rank(at, rows[i]) > rank(at, row)) row = rows[i];
      }
      return row;
    };
    const isOpen = rows.some(row => run.undecidedAt[row]);
    rowsPicture = {key, canvas: picture(run.times, lines, (line, at) =>
      cellColour(run, palette, view.colour, at, rowAt(line, at))),
    undecided: isOpen ? picture(run.times, lines, (line, at) =>
      [0, 0, 0, isUndecided(run, at, rowAt(line, at)) ? 255 : 0]) : null};
  }
  stretch(pen, rowsPicture.canvas, run, view, area, ratio);
  if (rowsPicture.undecided) paintUndecided(pen, run, view, area, palette, ratio);
}

function paintUndecided(pen, run, view, area, palette, ratio) {
  const layer = document.createElement("canvas");
  layer.width = pen.canvas.width;
  layer.height = pen.canvas.height;
  if (!layer.width || !layer.height) return;
  const ink = layer.getContext("2d");
  ink.scale(ratio, ratio);
  stretch(ink, rowsPicture.undecided, run, view, area, ratio);
  ink.globalCompositeOperation = "source-in";
  ink.fillStyle = doubt(ink, palette);
  ink.fillRect(area.left, area.top, area.right - area.left, area.bottom - area.top);
  pen.drawImage(layer, 0, 0, layer.width / ratio, layer.height / ratio);
}

function picture(width, height, colourOf) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const ink = canvas.getContext("2d"), image = ink.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      image.data[4 * (y * width + x) + 3] = 255;
      image.data.set(colourOf(y, x), 4 * (y * width + x));
    }
  }
  ink.putImageData(image, 0, 0);
  return canvas;
}

// Each column of a picture to its checkpoint's true place.
function stretch(pen, canvas, run, view, area, ratio) {
  pen.imageSmoothingEnabled = false;
  const snap = value => Math.round(value * ratio) / ratio;
  for (const column of run.columns) {
    if (column.at < 0 || column.to < view.from || column.from > view.to) continue;
    const from = snap(placeOf(area, view, column.from)), to = snap(placeOf(area, view, column.to));
    pen.drawImage(canvas, column.at, 0, 1, canvas.height, from, area.top,
      Math.max(to - from, 1 / ratio), area.bottom - area.top);
  }
}

function separateRows(pen, area, count, palette) {
  pen.strokeStyle = palette.paper;
  pen.beginPath();
  for (let i = 1; i < count; i++) {
    const y = Math.round(area.top + i * area.rowHeight) - 0.5;
    pen.moveTo(area.left, y);
    pen.lineTo(area.right, y);
  }
  pen.stroke();
}

function paintStrip(pen, run, rows, area, palette) {
  rows.forEach((row, i) => {
    const group = run.groupOf[row];
    if (group < 0 && !run.isBase[row] && !run.isUndated[row]) return;
    pen.fillStyle = group < 0 ? headColour(run, row, palette) : COHORT_COLOURS[group][0];
    pen.fillRect(area.left - 7, area.top + i * area.rowHeight, 5, area.rowHeight);
  });
}

const LABEL = 14;  // height of a line of text, and a little

// A name a row where there is room, else of as many rows as have it.
function labelRows(pen, run, rows, view, area, palette) {
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  pen.fillStyle = palette.soft;
  const y = i => Math.max(area.top + (i + 0.5) * area.rowHeight, area.top + 6);
  const place = area.left - 11;
  let free = -Infinity;
  if (area.rowHeight < 9 && view.order === "layer") {
    rows.forEach((row, i) => {
      const layer = Math.floor(row / run.heads);
      const isFirst = !i || Math.floor(rows[i - 1] / run.heads) !== layer;
      if (!isFirst || y(i) < free) return;
      pen.fillText("layer " + layer, place, y(i));
      free = y(i) + LABEL;
    });
    return;
  }
  rows.forEach((row, i) => {
    if (y(i) < free) return;
    pen.fillText(headName(run, row), place, y(i));
    free = y(i) + (area.rowHeight >= 9 ? LABEL : 22);
  });
}
