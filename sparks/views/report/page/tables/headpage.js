// A head's own page: its importance and frequency over time, its events, its strongest edges.

const SHOWN_OF_HEAD = 6;  // edges in a table

function drawImportance(holder, run, row, view, palette) {
  const {pen, width, height} = sheet(holder, 170);
  const area = timeArea(width, 10, height - 32);
  const values = run.steps.map((_, at) => 100 * shareAt(run, at, row));
  const ends = run.steps.map((_, at) => hasEnds(run, at) && !run.unscoredAt.has(at) ?
    endsAt(run, at, row).map(end => 100 * end) : [NaN, NaN]);
  const tops = ends.map(([, high]) => high).filter(Number.isFinite);
  const high = Math.max(...values, ...tops) * 1.06 || 1;
  drawStepAxis(pen, area, view, palette, true, false);
  const y = drawValueAxis(pen, area, 0, high, palette, false);
  clipTo(pen, area, () => {
    drawGaps(pen, run, view, area, palette, 1, true);
    const x = run.steps.map(step => placeOf(area, view, step));
    const colour = headColour(run, row, palette);
    drawEnds(pen, x, ends.map(([low]) => y(low)), ends.map(([, top]) => y(top)), colour);
    const points = x.map((place, at) => [place, y(values[at])])
      .filter((_, at) => !run.unscoredAt.has(at));
    drawLine(pen, points, colour, [], run.times < 60);
  });
  return area;
}

function drawUsage(holder, run, row, view, palette) {
  const {pen, width, height} = sheet(holder, 120);
  const area = timeArea(width, 6, height - 40);
  drawStepAxis(pen, area, view, palette, false, true);
  drawUsageBars(pen, area, run, row, view, palette);
  return area;
}

function fillHeadPage(run, row, at, on) {
  const name = headName(run, row), scored = !run.unscoredAt.has(at);
  byId("page-title").textContent = "Head " + name;
  byId("page-kind").textContent = kindText(run, row);
  byId("page-words").textContent = headSentence(run, row);
  fillList(byId("page-facts"), [
    ["At step", run.steps[at]],
    ...factsOfHead(run, row, at),
    ["Rank", scored && shareAt(run, at, row) > 0 ? rankOf(run, row, at) + " of " + run.rows :
      "\u2013"],
    ["Mean change so far", at ? signed(meanEffectAt(run, at, row)) : "\u2013"],
  ]);
  byId("page-history").replaceChildren(...(run.history[row].length ?
    run.history[row].map(event => {
      const button = make("button", {type: "button", text: event.kind + " " + run.steps[event.at] +
        sinceText(run, event)});
      button.addEventListener("click", () => on.cursor(event.at));
      return make("li", {}, [button]);
    }) : [make("li", {text: "No change of state in this run."})]));
  byId("usage-title").textContent = run.rule === "paper" ? "Share of probes that use it" :
    "Share of all |score|";
  byId("usage-caption").textContent = usageCaption(run);
  byId("importance-caption").textContent = run.is_large ? "In so large a report its interval at " +
    "the last checkpoint only." : "With its 95 % interval over probes.";
  fillHeadEdges(run, row, at, on);
}

function headSentence(run, row) {
  const held = run.activeAt[row], end = run.times - 1, open = run.undecidedAt[row];
  const late = lateBirth(run, row);
  const start = run.isBase[row] ? "Active before anything was trained" : run.isUndated[row] ?
    "Active as soon as one could tell" : run.cohortOf[row] < 0 ?
      run.rule === "paper" ? "Never in a circuit" : "Never active" :
      "Born at step " + run.steps[run.cohortOf[row]] + (late ? ", where it was settled (it shows " +
        "since step " + run.steps[late.onset] + ")" : "");
  const specific = specificText(run, row);
  return start + (held ? "; active at " + held + " of " + run.times + " checkpoints" +
    (isActive(run, end, row) ? ", the last one included" : ", not at the last one") : "") +
    (open ? "; undecided at " + open : "") + (specific ? "; " + specific : "") +
    (held || open ? "." : " of this run.");
}

function rankOf(run, row, at) {
  let rank = 1;
  const mine = shareAt(run, at, row);
  for (let other = 0; other < run.rows; other++) if (shareAt(run, at, other) > mine) rank++;
  return rank;
}

function fillHeadEdges(run, row, at, on) {
  const holder = byId("page-edges");
  const birth = Math.max(0, run.cohortOf[row]);
  const moments = [[run.cohortOf[row] >= 0 ? "At birth, step " : "At the first checkpoint, step ",
    birth], ["At the cursor, step ", at]];
  holder.replaceChildren(...moments.flatMap(([label, time]) => {
    const {into, out} = edgesOfHead(run, row, time);
    const table = (edges, word, nameOf) => edgeTable(run, edges, word, nameOf, on);
    return [make("div", {class: "edges"}, [
      make("h3", {text: label + run.steps[time]}),
      table(into, "from", edge => [sourceNode(run, edge.source),
        destinationNode(run, edge.destination).input]),
      table(out, "to", edge => [destinationNode(run, edge.destination), ""]),
    ])];
  }));
  byId("page-edges-caption").textContent = "Means over probes, in nats; in brackets what it enters " +
    "of this head; keys and values belong to its whole group. " + edgesCaption(run);
}

function edgeTable(run, edges, word, nameOf, on) {
  const names = [word, "|score|", "signed", "probes"];
  const heading = make("tr", {}, names.map((text, i) =>
    make("th", {class: i ? "" : "text", scope: "col", text})));
  const body = edges.slice(0, SHOWN_OF_HEAD).map(edge => {
    const [node, into] = nameOf(edge);
    return make("tr", {}, [
      make("td", {class: "text"}, [nodeButton(run, node, on),
        make("span", {class: "soft", text: into ? " (" + into + ")" : ""})]),
      make("td", {text: scoreText(edge.strength)}),
      make("td", {text: scoreText(edge.strength * edge.balance)}),
      make("td", {text: shareText(run, edge.share)})]);
  });
  const none = make("tr", {}, [make("td", {class: "text soft", colspan: 4,
    text: "none among the edges that the page holds"})]);
  return make("table", {}, [make("thead", {}, [heading]),
    make("tbody", {}, body.length ? body : [none])]);
}

function nodeButton(run, node, on) {
  if (node.kind !== "head") return make("span", {text: inputName({input: "", ...node})});
  const button = make("button", {type: "button", text: inputName({input: "", ...node})});
  button.addEventListener("click", () => on.head(node.layer * run.heads + node.index));
  return button;
}
