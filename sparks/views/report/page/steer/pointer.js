// What the pointer and the keys do in the plots.

function tip(event, text) {
  const box = byId("tip");
  box.style.visibility = text ? "visible" : "hidden";
  if (!text) return;
  box.textContent = text;
  const x = Math.min(event.clientX + 14, root.clientWidth - box.offsetWidth - 6);
  const above = event.clientY + 18 + box.offsetHeight > root.clientHeight;
  const y = event.clientY + (above ? -box.offsetHeight - 10 : 18);
  box.style.transform = "translate(" + Math.max(4, x) + "px," + y + "px)";
}

const stateLine = (run, at, row) => "step " + run.steps[at] + ": " + stateText(run, at, row) +
  ", share " + massText(run, at, row);

function tipText(row, at) {
  return headName(run, row) + ", " + kindText(run, row) + "\n" + stateLine(run, at, row) + "\n" +
    probesText(run, at, row) + " probes" + (run.unscoredAt.has(at) ? "" : ", importance " +
    importanceText(run, at, row) + ", change " + signed(effectAt(run, at, row)));
}

function rowUnder(y) {
  const area = areas["rows-plot"], index = Math.floor((y - area.top) / area.rowHeight);
  return rows[index] ?? null;
}

function listenToPlot(name) {
  const holder = byId(name), isRows = name === "rows-plot";
  let start = null, dragged = false;
  const at = event => {
    const box = holder.getBoundingClientRect(), area = areas[name];
    const x = Math.max(area.left, Math.min(area.right, event.clientX - box.left));
    return {x, y: event.clientY - box.top, step: stepAt(area, view, x)};
  };
  holder.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    start = at(event);
    dragged = false;
    holder.setPointerCapture(event.pointerId);
  });
  holder.addEventListener("pointermove", event => {
    const now = at(event);
    if (start && Math.abs(now.x - start.x) > 6) dragged = true;
    if (dragged) return showBrush(name, start.x, now.x);
    const hover = nearestCheckpoint(run, now.step);
    const row = isRows ? rowUnder(now.y) : null;
    const text = name === "shift-plot" ? shiftText(run, view, areas[name], now.y, hover) :
      row === null ? "" : tipText(row, hover);
    tip(event, text);
    if (hover !== view.hover) setHover(hover);
    return undefined;
  });
  holder.addEventListener("pointerup", event => {
    if (!start) return;
    const end = at(event), from = start;
    start = null;
    part(name, "brush").hidden = true;
    if (dragged) {
      dragged = false;
      zoom(Math.min(from.step, end.step), Math.max(from.step, end.step));
      return;
    }
    const row = isRows ? rowUnder(end.y) : null;
    if (row !== null) view.head = row;
    chooseCursor(nearestCheckpoint(run, end.step));
    if (row !== null) drawHead();
  });
  const leave = () => {
    start = null;
    dragged = false;
    part(name, "brush").hidden = true;
    tip(null, "");
    setHover(null);
  };
  holder.addEventListener("pointerleave", leave);
  holder.addEventListener("pointercancel", leave);
  holder.addEventListener("dblclick", () => zoom(run.from, run.to));
}

function setHover(at) {
  view.hover = at;
  showNumbers();
}

function showBrush(name, a, b) {
  const brush = part(name, "brush"), area = areas[name];
  brush.hidden = false;
  brush.style.transform = "translate(" + Math.min(a, b) + "px," + area.top + "px)";
  brush.style.width = Math.abs(a - b) + "px";
  brush.style.height = area.bottom - area.top + "px";
}

function listenToGrid() {
  const holder = byId("grid-plot");
  const under = event => {
    const box = holder.getBoundingClientRect();
    return headInGrid(run, grid, event.clientX - box.left, event.clientY - box.top);
  };
  holder.addEventListener("pointermove", event => {
    const row = under(event);
    tip(event, row === null ? "" : tipText(row, view.cursor));
  });
  holder.addEventListener("pointerleave", () => tip(null, ""));
  holder.addEventListener("click", event => {
    const row = under(event);
    if (row !== null) chooseHead(row);
  });
  holder.addEventListener("dblclick", event => {
    const row = under(event);
    if (row !== null) openHead(row);
  });
}

function listenToMap() {
  const holder = byId("map-plot");
  const under = event => {
    const box = holder.getBoundingClientRect();
    return headInGrid(compared(), mapGrid, event.clientX - box.left, event.clientY - box.top);
  };
  holder.addEventListener("pointermove", event => {
    const row = under(event);
    tip(event, row === null ? "" :
      mapText(PAGE.runs, compared(), byId("map-when").value, row));
  });
  holder.addEventListener("pointerleave", () => tip(null, ""));
  holder.addEventListener("click", event => {
    const row = under(event);
    if (row !== null) chooseHead(row);
  });
  byId("map-when").addEventListener("change", drawComparedMap);
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function moveHeadInGrid([across, down]) {
  const layer = Math.floor(view.head / run.heads) + down, head = view.head % run.heads + across;
  if (layer < 0 || layer >= run.layers || head < 0 || head >= run.heads) return;
  chooseHead(layer * run.heads + head);
}

function moveHeadInRows(down) {
  const index = rows.indexOf(view.head);
  const next = index < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, index + down));
  if (rows.length) chooseHead(rows[next]);
}

function onKey(event) {
  const {target, key} = event;
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) || target.closest(".scroll")) return;
  const arrow = ARROWS[key];
  const act = () => {
    if (arrow && target.id === "grid-plot") return () => moveHeadInGrid(arrow);
    if (arrow && arrow[1]) {
      return target.id === "rows-plot" ? () => moveHeadInRows(arrow[1]) : null;
    }
    if (arrow) return () => chooseCursor(view.cursor + arrow[0]);
    if (key === "Enter" && /^(grid|rows)-plot$/.test(target.id)) return () => openHead(view.head);
    return {"1": () => chooseTab("timeline"), "2": () => chooseTab("head"),
      "3": () => chooseTab("circuit"), "/": () => byId("find").focus(),
      Home: () => chooseCursor(0), End: () => chooseCursor(run.times - 1),
      "+": () => zoomBy(0.5), "=": () => zoomBy(0.5), "-": () => zoomBy(2),
      "0": () => zoom(run.from, run.to), Escape: () => zoom(run.from, run.to)}[key];
  };
  const chosen = act();
  if (!chosen) return;
  event.preventDefault();
  stop();
  chosen();
}
