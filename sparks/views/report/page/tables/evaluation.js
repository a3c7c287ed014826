// Evaluations over training: pass@1 under every other view's axis, and the problems that changed.
// Stands in pages of runs that were evaluated alone. Texts are a model's own: textContent only.

const FIRST_NAMES = 12;
let shownChanges = "";

function addEvaluation() {
  const plot = make("div", {class: "plot", id: "evaluation-plot", tabindex: "0", role: "group",
    "aria-label": "pass@1 over training steps; left and right arrow keys move the cursor, plus and minus zoom"});
  byId("metric-plot").parentElement.after(make("section", {id: "evaluation", "aria-labelledby": "evaluation-title"}, [
    make("div", {class: "head"}, [make("h2", {id: "evaluation-title"}),
      make("output", {id: "evaluation-text"})]), plot,
    make("p", {class: "caption", id: "evaluation-caption"})]));
  document.querySelector("main").after(make("section", {id: "changes", "aria-labelledby": "changes-title"}, [
    make("h2", {id: "changes-title"}), make("p", {id: "changes-text"}), make("p", {id: "changes-heads"}),
    make("div", {class: "halves"}, ["solved", "missed"].map(kind => make("div", {}, [
      make("h3", {id: kind + "-title"}), make("div", {class: "changes", id: kind})]))),
    make("p", {class: "caption", text: "Newly solved: by no sample of the first evaluation, by at " +
      "least one here; newly missed: the reverse. Sure: beyond the luck of so few samples (Fisher\u2019s " +
      "exact test, at most 5 % false ones expected); all others can be luck. A problem opens with " +
      "a sampled answer of the first evaluation and one of this step."})]));
  PLOTS.timeline.push("evaluation-plot");
}

function decodeEvaluation(found) {
  const {texts, steps} = JSON.parse(new TextDecoder().decode(found.detail));
  found.changes = steps.map(changes => changes.map(([kind, isSure, problem, answer, before, after, then, now]) =>
    ({kind, isSure, problem: texts[problem], answer: texts[answer], before, after, then: texts[then],
      now: texts[now]})));
  found.curve = {steps: found.steps, values: found.pass_1, low: found.low, high: found.high};
}

// The last evaluation up to a checkpoint; -1 where there is none yet.
function evaluationAt(at) {
  return run.evaluation.steps.filter(step => step <= run.steps[at]).length - 1;
}

// Names of heads with such an event after one evaluation, up to the next.
function headsBetween(kind, index) {
  const {steps} = run.evaluation, found = [];
  for (let row = 0; row < run.rows && index > 0; row++) {
    const isHere = run.history[row].some(event => event.kind === kind &&
      steps[index - 1] < run.steps[event.at] && run.steps[event.at] <= steps[index]);
    if (isHere) found.push(row);
  }
  return found;
}

const sureText = (count, sure) => count + (sure ? " (" + sure + " sure)" : "");

function changesText(index) {
  const {newly, sure, luck} = run.evaluation;
  return "newly solved " + sureText(newly.solved[index], sure.solved[index]) + ", newly missed " +
    sureText(newly.missed[index], sure.missed[index]) + "; an unchanged model gives " +
    number(Number(luck[index].toPrecision(2))) + " of each";
}

function fillHeadsBetween(index) {
  const {steps} = run.evaluation;
  const parts = ["born", "pruned"].flatMap(kind => {
    const heads = headsBetween(kind, index), more = heads.length - FIRST_NAMES;
    const buttons = heads.slice(0, FIRST_NAMES).map(row => {
      const button = make("button", {type: "button", text: headName(run, row)});
      button.addEventListener("click", () => openHead(row));
      return button;
    });
    return [make("span", {text: heads.length + " " + kind + (heads.length ? ":" : "")}), ...buttons,
      ...more > 0 ? [make("span", {text: "and " + more + " more"})] : []];
  });
  byId("changes-heads").replaceChildren(...index > 0 ?
    [make("span", {text: "Heads since step " + steps[index - 1] + ":"}), ...parts] : []);
}

function changeEntry(change) {
  const {samples} = run.evaluation, block = text => make("pre", {text});
  const counts = change.before + "/" + samples + " \u2192 " + change.after + "/" + samples +
    (change.isSure ? ", sure" : "");
  return make("details", {}, [
    make("summary", {}, [make("b", {text: counts}), make("span", {text: " " + change.problem})]),
    make("p", {class: "soft", text: "Problem"}), block(change.problem),
    make("p", {class: "soft", text: "Right answer"}), block(change.answer),
    make("p", {class: "soft", text: "First evaluation, a sample that is " +
      (change.kind === "solved" ? "wrong" : "right")}), block(change.then),
    make("p", {class: "soft", text: "This step, a sample that is " +
      (change.kind === "solved" ? "right" : "wrong")}), block(change.now)]);
}

function fillChanges(index) {
  const {steps, newly, changes} = run.evaluation;
  const isThere = index >= 0;
  byId("changes-title").textContent = isThere ? "Problems at step " + steps[index] :
    "Problems: not evaluated yet";
  const change = isThere && run.evaluation.change[index];
  byId("changes-text").textContent = index > 0 ? "Against step " + steps[0] + ": " + (change ?
    "pass@1 " + signed(change[0]) + " (95 % interval " + signed(change[1]) + " to " +
    signed(change[2]) + "), " : "") + changesText(index) + "." : isThere ? "The first evaluation: the others are held against it." : "";
  fillHeadsBetween(index);
  for (const kind of ["solved", "missed"]) {
    const count = isThere ? newly[kind][index] : 0;
    const shown = isThere ? changes[index].filter(change => change.kind === kind) : [];
    byId(kind + "-title").textContent = "Newly " + kind + ": " + count;
    byId(kind).replaceChildren(...shown.map(changeEntry),
      ...count > shown.length ? [make("p", {class: "soft", text: "and " + (count - shown.length) +
        " more: sparks timeline RUN --format json --table problems"})] : []);
  }
}

addEvaluation();
EXTRAS.push({
  // Before widths are measured.
  all() {
    const found = run.evaluation;
    byId("evaluation").hidden = byId("changes").hidden = !found;
    if (!found || found.curve) return;
    decodeEvaluation(found);
  },
  draw() {
    const found = run.evaluation;
    shownChanges = "";
    areas["evaluation-plot"] = {left: 1, right: 0, top: 0, bottom: 0};
    if (!found) return;
    byId("evaluation-title").textContent = "pass@1 on " + found.task;
    byId("evaluation-caption").textContent = found.problems + " problems, " + found.samples +
      (found.samples === 1 ? " sample" : " samples") + " each; band: 95 % interval over problems.";
    areas["evaluation-plot"] = drawCurve(byId("evaluation-plot"), run, found.curve, view, palette);
  },
  at(at) {
    if (!run.evaluation) return;
    const index = evaluationAt(at);
    byId("evaluation-text").textContent = index < 0 ? "" :
      curveText(run, run.evaluation.curve, run.evaluation.steps[index]) +
      (index ? "; " + changesText(index) : "");
    const chosen = evaluationAt(view.cursor), key = [view.run, run.rule, chosen].join();
    if (key === shownChanges) return;
    shownChanges = key;
    fillChanges(chosen);
  },
});
