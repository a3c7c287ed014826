// Several runs as a map (Fig. 14): which runs brought each head to life.

// Okabe-Ito, as far as they differ well from the empty cell in both themes.
const RUN_COLOURS = ["#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#0072b2", "#8a6d3b"];
const runColour = index => RUN_COLOURS[index % RUN_COLOURS.length];
const runsOfHead = (map, row) => map.map((rows, index) => rows.has(row) ? index : -1)
  .filter(index => index >= 0);

function decodeMaps(comparison) {
  comparison.mapOf = {};
  for (const when of ["end", "ever"]) {
    comparison.mapOf[when] = comparison.maps[when].map(rows => new Set(rows));
  }
}

// A cell is cut into as many stripes as runs hold the head; all of them together: a frame.
function drawMap(holder, comparison, when, view, palette) {
  const {layers, heads} = comparison, map = comparison.mapOf[when];
  const room = widths.get(holder.parentElement), left = 30;
  const cell = {width: Math.max(3, Math.min(34, Math.floor((room - left - 2) / heads))),
    height: Math.max(5, Math.min(20, Math.round(460 / layers)))};
  const {pen} = sheet(holder, cell.height * layers + 24, left + cell.width * heads + 4);
  const shape = {layers, heads}, grid = {left, top: 2, cell};
  const gap = cell.width >= 8 && cell.height >= 7 ? 2 : cell.width >= 5 ? 1 : 0;
  for (let row = 0; row < layers * heads; row++) {
    const [x, y] = cellCorner(shape, grid, row), holders = runsOfHead(map, row);
    const width = cell.width - gap, height = cell.height - gap;
    pen.fillStyle = palette.empty;
    pen.fillRect(x, y, width, height);
    holders.forEach((index, i) => {
      pen.fillStyle = runColour(index);
      pen.fillRect(x + width * i / holders.length, y, width / holders.length, height);
    });
    if (holders.length === map.length) outline(pen, x, y, cell, gap, palette.mark);
  }
  labelGrid(pen, shape, grid, palette);
  return grid;
}

function fillMapLegend(runs, comparison, when) {
  const map = comparison.mapOf[when], rows = new Set(map.flatMap(part => [...part]));
  const alone = map.map(() => 0);
  let all = 0;
  for (const row of rows) {
    const holders = runsOfHead(map, row);
    if (holders.length === 1) alone[holders[0]]++;
    if (holders.length === map.length) all++;
  }
  byId("map-legend").replaceChildren(...runs.map((run, index) => make("li", {}, [
    swatch(runColour(index)), make("span", {text: run.name}),
    make("b", {text: map[index].size + ", " + alone[index] + " alone"})])),
  make("li", {}, [make("span", {text: "in every run"}), make("b", {text: all})]));
}

function mapText(runs, comparison, when, row) {
  const holders = runsOfHead(comparison.mapOf[when], row);
  const name = headName(comparison, row);
  if (!holders.length) return name + ": emergent in no run";
  return name + ": emergent in " + holders.map(index => runs[index].name).join(", ") +
    (holders.length === 1 ? " alone" : "");
}
