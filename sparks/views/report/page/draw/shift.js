// How the components of each layer gain and lose weight (Fig. 12): E of attention, MLP, embedding.

const SHIFT_PARTS = ["attention", "MLP", "embedding"];

function shiftRows(run, view) {
  const layers = view.high - view.low + 1;
  const height = Math.max(2, Math.min(8, Math.round(190 / layers)));
  const of = (part, first, count, tall) => ({part, first, count, tall});
  return [of(0, 1 + view.low, layers, height), of(1, 1 + run.layers + view.low, layers, height),
    of(2, 0, 1, Math.max(10, height))];
}

function drawShift(holder, run, view, palette) {
  const blocks = shiftRows(run, view), gap = 9;
  const body = blocks.reduce((sum, block) => sum + block.count * block.tall + gap, -gap);
  const {pen, width, ratio} = sheet(holder, body + 42);
  const area = timeArea(width, 4, body);
  area.blocks = blocks;
  drawStepAxis(pen, area, view, palette, false, true);
  let top = area.top;
  const most = shiftMost(run);
  for (const block of blocks) {
    const box = {...area, top, bottom: top + block.count * block.tall};
    Object.assign(block, {top: box.top, bottom: box.bottom});
    clipTo(pen, {...box, top: box.top + 4, bottom: box.bottom - 4}, () => {
      stretch(pen, picture(run.times, block.count, (line, at) =>
        effectColour(palette, run.shiftOf[(block.first + line) * run.times + at] / most)),
      run, view, box, ratio);
      drawGaps(pen, run, view, box, palette, 1);
    });
    labelBlock(pen, block, area, view, palette);
    top = box.bottom + gap;
  }
  return area;
}

// Components move less than heads: the colours reach as far as the largest change of the run.
const shiftMost = run => run.shiftMost ??=
  Math.max(0.01, run.shiftOf.reduce((most, value) => Math.max(most, Math.abs(value)), 0));

function drawShiftScale(holder, run, palette) {
  const most = shiftMost(run).toFixed(2);
  holder.replaceChildren(make("div", {class: "ramp"}, [make("span", {text: "change E"}),
    make("span", {text: sign("-" + most)}),
    rampPicture(part => effectColour(palette, 2 * part - 1)),
    make("span", {text: "+" + most})]));
}

function labelBlock(pen, block, area, view, palette) {
  pen.fillStyle = palette.soft;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const middle = (block.top + block.bottom) / 2, place = area.left - 6;
  pen.fillText([place < 50 ? "attn" : "attention", "MLP", "embed"][block.part], place, middle);
  if (block.bottom - block.top < 60) return;
  pen.fillText("L" + view.low, place, block.top + 6);
  pen.fillText("L" + view.high, place, block.bottom - 6);
}

function shiftText(run, view, area, y, at) {
  const block = area.blocks.find(item => item.top <= y && y < item.bottom);
  if (!block) return "";
  const line = Math.floor((y - block.top) / block.tall);
  const layer = block.part === 2 ? "" : "layer " + (view.low + line) + " ";
  return layer + SHIFT_PARTS[block.part] + "\nstep " + run.steps[at] + ": change " +
    signed(run.shiftOf[(block.first + line) * run.times + at]);
}
