// The view as text behind the address's #, and back: run, step, view, head, filters, zoom.

const CHOICES = ["show", "order", "colour"];

function linkText(run, view, isOnlyRun) {
  const parts = {
    run: isOnlyRun ? null : run.name, rule: run.rule, view: view.tab, step: run.steps[view.cursor],
    head: headName(run, view.head), heads: view.show, order: view.order, colour: view.colour,
    layers: view.low || view.high < run.layers - 1 ? view.low + "-" + view.high : null,
    curve: run.curves[view.curve] ? run.curves[view.curve].name : null,
    zoom: view.from > run.from || view.to < run.to ?
      Number(view.from.toFixed(2)) + "~" + Number(view.to.toFixed(2)) : null,
    edges: view.edges, share: view.share, through: view.through,
  };
  return "#" + Object.entries(parts).filter(([, value]) => value !== null)
    .map(([key, value]) => key + "=" + encodeURIComponent(value)).join("&");
}

// What a link asks for, as far as it makes sense; a link of another report leaves all as it is.
function readLink(text) {
  const out = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const [key, value] = part.split("=", 2);
    try {
      if (value !== undefined) out[key] = decodeURIComponent(value);
    } catch {
      // Not text: leave it out.
    }
  }
  return out;
}

function headByName(run, text) {
  const match = /^\s*L?\s*(\d+)\s*[H.,:\s]\s*H?(\d+)\s*$/i.exec(text);
  if (!match) return null;
  const layer = Number(match[1]), head = Number(match[2]);
  return layer < run.layers && head < run.heads ? layer * run.heads + head : null;
}

function applyLink(run, view, link) {
  const isOption = (name, value) =>
    [...byId(name).options].some(option => option.value === value);
  const at = run.steps.indexOf(Number(link.step));
  if (link.step !== undefined && at >= 0) view.cursor = at;
  const row = headByName(run, link.head || "");
  if (row !== null) view.head = row;
  for (const [name, key] of [["show", "heads"], ["order", "order"], ["colour", "colour"]]) {
    if (link[key] !== undefined && isOption(name, link[key])) view[name] = link[key];
  }
  const layers = /^(\d+)-(\d+)$/.exec(link.layers || "");
  if (layers && Number(layers[1]) <= Number(layers[2]) && Number(layers[2]) < run.layers) {
    [view.low, view.high] = [Number(layers[1]), Number(layers[2])];
  }
  const curve = run.curves.findIndex(item => item.name === link.curve);
  if (curve >= 0) view.curve = curve;
  const zoom = (link.zoom || "").split("~").map(Number);
  if (zoom.length === 2 && run.from <= zoom[0] + 0.01 && zoom[0] < zoom[1] &&
      zoom[1] <= run.to + 0.01) [view.from, view.to] = zoom;
  if (Object.hasOwn(PLOTS, link.view)) view.tab = link.view;
  const edges = Number(link.edges), share = Number(link.share);
  if (Number.isInteger(edges) && edges >= FEWEST_SHOWN) view.edges = edges;
  if (link.share !== undefined && isOption("edge-share", link.share)) view.share = share;
  if (isOption("edge-through", link.through)) view.through = link.through;
}

// The address of the file with the view behind it; in a frame without one, the part behind alone.
const linkOf = text => /^(file|https?):/.test(location.protocol) && window.top === window ?
  location.href.replace(/#.*/, "") + text : text;

async function copyLink(text) {
  const box = byId("link-text");
  box.hidden = false;
  box.value = text;
  box.select();
  let isCopied = false;
  try {
    await navigator.clipboard.writeText(text);
    isCopied = true;
  } catch {
    // Not allowed here: the reader copies the marked text.
  }
  byId("link-state").textContent = isCopied ? "copied" : "press Ctrl+C to copy";
}
