// The edges of the consensus over probes, and the names of their ends.
// An edge: {source, destination, strength (mean |score|), balance (signed mean / strength), share}.

// At the first look: not every reader opens these views.
function edgesAt(run, at) {
  if (!run.edgesOf) decodeEdges(run);
  return run.edgesOf[at]();
}

function decodeEdges(run) {
  const sent = run.edges, root = joinPlanes(sent.strength, Uint16Array);
  const source = sumUp(joinPlanes(sent.source, Uint16Array));
  const destination = joinPlanes(sent.destination, Uint16Array);
  const balance = new Int8Array(sent.balance.buffer), {share} = sent;
  let next = 0;
  run.edgesOf = sent.counts.map(count => {
    const from = next, to = next += count;
    let edges = null;
    return () => edges ??= Array.from({length: to - from}, (_, i) => ({
      source: source[from + i], destination: destination[from + i],
      strength: sent.strength_max * (root[from + i] / 4095) ** 2,
      balance: balance[from + i] / 127, share: share[from + i] / 255,
    })).sort((a, b) => b.strength - a.strength || a.source - b.source ||
      a.destination - b.destination);
  });
}

// A node: {kind: embed | head | kv | mlp | logits, layer, index}, one object a name.
function sourceNode(run, source) {
  if (source === 0) return {kind: "embed", layer: -1, index: 0, name: "embed"};
  const layer = Math.floor((source - 1) / (run.heads + 1)), index = (source - 1) % (run.heads + 1);
  return index < run.heads ? {kind: "head", layer, index, name: "L" + layer + "H" + index} :
    {kind: "mlp", layer, index: 0, name: "L" + layer + "MLP"};
}

// `input`: what of the node the edge enters: q, k, v, or nothing.
function destinationNode(run, destination) {
  const width = run.heads + 2 * run.kv_heads + 1, layer = Math.floor(destination / width);
  if (layer === run.layers) return {kind: "logits", layer, index: 0, name: "logits", input: ""};
  const place = destination % width;
  if (place === width - 1) {
    return {kind: "mlp", layer, index: 0, name: "L" + layer + "MLP", input: ""};
  }
  if (place < run.heads) {
    return {kind: "head", layer, index: place, name: "L" + layer + "H" + place, input: "q"};
  }
  const index = (place - run.heads) % run.kv_heads;
  const input = place - run.heads < run.kv_heads ? "k" : "v";
  if (run.kv_heads === run.heads) {
    return {kind: "head", layer, index, name: "L" + layer + "H" + index, input};
  }
  return {kind: "kv", layer, index, name: "L" + layer + "KV" + index, input};
}

const groupSize = run => run.heads / run.kv_heads;

// Of a head at a checkpoint: its edges out, and in (those of its keys and values too).
function edgesOfHead(run, row, at) {
  const layer = Math.floor(row / run.heads), head = row % run.heads, out = [], into = [];
  for (const edge of edgesAt(run, at)) {
    const from = sourceNode(run, edge.source);
    if (from.kind === "head" && from.layer === layer && from.index === head) out.push(edge);
    const to = destinationNode(run, edge.destination);
    if (to.layer !== layer) continue;
    const isMine = to.kind === "head" ? to.index === head :
      to.kind === "kv" && to.index === Math.floor(head / groupSize(run));
    if (isMine) into.push(edge);
  }
  return {out, into};
}

const inputName = node => node.name + (node.input ? "." + node.input : "");
const shareText = (run, share) => run.probes <= 254 ?
  Math.round(share * run.probes) + " of " + run.probes : percent(share);
const scoreText = value => number(Number(value.toPrecision(3)));

function edgesCaption(run) {
  const {most, of_a_head: own} = run.edges;
  return "The page holds the " + most + " strongest edges of each checkpoint, as many through " +
    "heads, and " + own + " into and out of a head at its birth and at both ends of the run.";
}
