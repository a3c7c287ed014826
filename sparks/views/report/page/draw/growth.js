// Growth: heads x checkpoints by the factor of each head's share of all |score|. Stands in pages of
// runs in which a head grew or shrank.

const FULL_OCTAVES = 1;  // a factor of 2 either way has the full colour

function addGrowth() {
  const plot = make("div", {class: "plot", id: "growth-plot", tabindex: "0", role: "group",
    "aria-label": "growth of heads by checkpoints; left and right arrow keys move the cursor, plus and minus zoom"});
  const table = make("div", {class: "scroll", tabindex: "0", role: "region",
    "aria-labelledby": "growth-title"}, [make("table", {id: "growth-table"})]);
  byId("cohorts-plot").parentElement.before(make("section", {id: "growth",
    "aria-labelledby": "growth-title"}, [
    make("div", {class: "head"}, [make("h2", {id: "growth-title",
      text: "Heads that grew or shrank"}), make("output", {id: "growth-text"})]),
    make("ul", {id: "growth-scale", class: "legend"}), plot,
    make("p", {class: "caption", id: "growth-caption"}),
    make("details", {}, [make("summary", {text: "The largest factors in numbers"}), table])]));
  PLOTS.timeline.push("growth-plot");
  plot.addEventListener("mousemove", event => {
    const index = grownUnder(event);
    tip(event, index === null ? "" : grownText(index, view.hover ?? view.cursor));
  });
  let pressed = 0;
  plot.addEventListener("pointerdown", event => { pressed = event.clientX; });
  plot.addEventListener("click", event => {
    const index = Math.abs(event.clientX - pressed) > 6 ? null : grownUnder(event);  // a drag zooms
    if (index !== null) chooseHead(run.growth.heads[index]);
  });
}

function decodeGrowth(found) {
  const factors = new Int8Array(found.factors.buffer), turns = found.named;
  found.octaves = new Float32Array(factors.length);
  found.isNamed = new Uint8Array(factors.length);
  for (let start = 0; start < factors.length; start += run.times) {
    const row = sumUp(factors.subarray(start, start + run.times));
    for (let at = 0, holds = 0; at < run.times; at++) {
      holds ^= bit(turns, start + at);
      found.isNamed[start + at] = holds;
      found.octaves[start + at] = row[at] / found.octave;
    }
  }
}

function grownUnder(event) {
  const area = areas["growth-plot"], top = byId("growth-plot").getBoundingClientRect().top;
  const index = Math.floor((event.clientY - top - area.top) / area.rowHeight);
  return index >= 0 && index < run.growth.heads.length ? index : null;
}

const timesText = factor => "\u00d7 " + number(Number(factor.toPrecision(3)));

function grownText(index, at) {
  const {octaves, isNamed, heads, changes} = run.growth, cell = index * run.times + at;
  const change = changes.find(([place, time]) => place === index && time === at);
  return headName(run, heads[index]) + "\nstep " + run.steps[at] + ": share " +
    timesText(2 ** octaves[cell]) + (isNamed[cell] ? "" : ", may be luck") +
    (change ? change[2] > 0 ? ", born or back" : ", fell silent" : "");
}

// Full colour beyond luck, pale where it may be luck.
function grownColour(index, at) {
  const {octaves, isNamed} = run.growth, cell = index * run.times + at;
  const size = Math.max(-1, Math.min(1, octaves[cell] / FULL_OCTAVES));
  return effectColour(palette, isNamed[cell] ? Math.sign(size) * (0.35 + 0.65 * Math.abs(size)) :
    size * 0.2);
}

function drawGrowth(holder) {
  const {heads, changes} = run.growth;
  const body = Math.max(24, Math.round(heads.length * rowHeight(heads.length)));
  const {pen, width, ratio} = sheet(holder, body + 42);
  const area = timeArea(width, 4, body);
  area.rowHeight = body / heads.length;
  drawStepAxis(pen, area, view, palette, false, true);
  clipTo(pen, area, () => {
    stretch(pen, picture(run.times, heads.length, (index, at) => grownColour(index, at)), run, view,
      area, ratio);
    drawGaps(pen, run, view, area, palette, 1);
  });
  drawChanges(pen, area, changes);
  labelRows(pen, run, heads, {...view, order: "growth"}, area, palette);
  return area;
}

// Births and falls: seen on every colour, and whole at the last step too.
function drawChanges(pen, area, changes) {
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.strokeStyle = palette.paper;
  pen.fillStyle = palette.ink;
  pen.lineWidth = 2.5;
  pen.font = (changes.length > 100 ? 9 : 13) + "px system-ui, sans-serif";
  for (const [index, at, way] of changes) {
    const x = placeOf(area, view, run.steps[at]), y = area.top + (index + 0.5) * area.rowHeight;
    if (x < area.left || x > area.right) continue;
    const mark = [way > 0 ? "\u25b2" : "\u25bc", Math.min(x, area.right - 6), Math.max(y, area.top + 6)];
    pen.strokeText(...mark);
    pen.fillText(...mark);
  }
  pen.lineWidth = 1;
  pen.font = "11.5px system-ui, sans-serif";
}

function fillGrowth() {
  const {heads, told, at, left} = run.growth;
  const entry = (...parts) => make("li", {}, parts.map(part =>
    typeof part === "string" ? make("span", {text: part}) : part));
  byId("growth-scale").replaceChildren(entry("share of all |score|: \u00f7 2",
    rampPicture(part => effectColour(palette, 2 * part - 1)), "\u00d7 2"),
  entry("pale: may be luck"), entry("\u25b2 born or back"), entry("\u25bc fell silent"));
  byId("growth-caption").textContent = "A row a head, the most grown first" +
    (left ? "; " + left + " that changed less are left out" : "") + ".";
  const body = told.map(([index, factor, low, high, now]) => {
    const button = make("button", {type: "button", text: headName(run, heads[index])});
    button.addEventListener("click", () => openHead(heads[index]));
    return make("tr", {}, [make("td", {class: "text"}, [button]),
      make("td", {class: "text", text: factor > 1 ? "grew" : "shrank"}),
      make("td", {text: timesText(factor) + " (" + number(low) + " to " + number(high) + ")"}),
      make("td", {class: "text", text: now})]);
  });
  const titles = ["head", "verdict", "share at step " + run.steps[at] + " against the first (95 %)", "in or out now"];
  byId("growth-table").replaceChildren(make("thead", {}, [make("tr", {}, titles.map((text, i) =>
    make("th", {class: i === 2 ? "" : "text", scope: "col", text})))]), make("tbody", {}, body));
}

addGrowth();
EXTRAS.push({
  // Before widths are measured.
  all() {
    byId("growth").hidden = !run.growth;
    if (run.growth && !run.growth.octaves) decodeGrowth(run.growth);
    if (run.growth) fillGrowth();
  },
  draw() {
    areas["growth-plot"] = run.growth ? drawGrowth(byId("growth-plot")) :
      {left: 1, right: 0, top: 0, bottom: 0};
  },
  at(at) {
    if (!run.growth) return;
    byId("growth-text").textContent = "step " + run.steps[at] + ": " + run.growth.grew[at] +
      " grew, " + run.growth.shrank[at] + " shrank";
  },
});
