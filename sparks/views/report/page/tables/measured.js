// What was measured: probes in texts. Stands in pages of runs that keep them. Texts are hostile:
// textContent only.

const FIRST_PROBES = 3, QUOTE = 36;

function addMeasured() {
  byId("numbers").before(make("p", {id: "measured-line", class: "soft"}));
  const more = make("button", {type: "button", id: "measured-more"});
  byId("plots").after(make("section", {id: "measured", "aria-labelledby": "measured-title"}, [
    make("div", {class: "head"}, [make("h2", {id: "measured-title", text: "What was measured"}),
      make("output", {id: "measured-text"})]),
    make("p", {class: "caption", text: "Which heads make the model go on as in clean, and not as " +
      "in corrupted? Grey: what both begin with."}),
    make("div", {class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "measured-title"},
      [make("table", {id: "probes"})]), more]));
  more.addEventListener("click", () => {
    more.hidden = true;
    fillProbes(run.texts, Infinity);
  });
}

function sharedLength(a, b) {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length++;
  return length;
}

// Cut between words, where there are any.
const quoted = text => "\u201c" + (text.length > QUOTE ?
  text.slice(0, QUOTE).replace(/(?<=.) \S*$/, "") + "\u2026" : text) + "\u201d";
const quotedEnd = text => "\u201c" + (text.length > QUOTE ?
  "\u2026" + text.slice(-QUOTE).replace(/^\S* (?=.)/, "") : text) + "\u201d";

function fillProbes({shown, groups}, limit) {
  const isGrouped = groups.some(([name]) => name);
  const names = ["prompt", "clean", "corrupted", ...isGrouped ? ["group"] : []];
  const body = shown.slice(0, limit).map(([prompt, clean, corrupted, group]) => {
    const same = sharedLength(clean, corrupted);
    const beginning = text => make("td", {class: "text long"}, [
      make("span", {class: "soft", text: text.slice(0, same)}), make("span", {text: text.slice(same)})]);
    return make("tr", {}, [make("td", {class: "text long", text: prompt}), beginning(clean),
      beginning(corrupted), ...isGrouped ? [make("td", {class: "text", text: group})] : []]);
  });
  byId("probes").replaceChildren(make("thead", {}, [make("tr", {}, names.map(text =>
    make("th", {class: "text", scope: "col", text})))]), make("tbody", {}, body));
}

function fillMeasured() {
  const {shown, groups} = run.texts, all = groups.reduce((sum, [, count]) => sum + count, 0);
  const [prompt, clean, corrupted] = shown[0];
  byId("measured-line").textContent = "Measured: after " + quotedEnd(prompt) + ", what makes the " +
    "model write " + quoted(clean) + " rather than " + quoted(corrupted) + "?";
  byId("measured-text").textContent = groups.map(([name, count]) => count + " " +
    (name || (groups.length > 1 ? "without a group" : "probes"))).join(", ");
  const more = byId("measured-more");
  more.hidden = shown.length <= FIRST_PROBES;
  more.textContent = "Show " + (shown.length < all ? shown.length + " of " + all : "all " + all);
  fillProbes(run.texts, FIRST_PROBES);
}

addMeasured();
let measuredRun = null;
EXTRAS.push({
  all() {
    byId("measured").hidden = byId("measured-line").hidden = !run.texts;
    if (run.texts && measuredRun !== run) fillMeasured();
    measuredRun = run;
  },
  draw() {},
  at() {},
});
