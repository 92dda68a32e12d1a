// One answer: verdict, rewards, costs, its steps with what was rejected.

const fixed = (value, digits = 2) => value.toFixed(digits);
const grouped = (number) => number.toLocaleString("en");
const counted = (number, one, many = `${one}s`) =>
  `${grouped(number)} ${number === 1 ? one : many}`;

function makeReward(reward, label = "reward") {
  if (reward === null) return make("span", { class: "reward none" }, "no reward");
  const fill = make("span", { class: "fill" });
  fill.style.width = `${100 * Math.max(0, Math.min(1, reward))}%`;
  const shown = fixed(reward);
  return make(
    "span", { class: "reward", title: `${label} ${reward}` },
    `${label} ${shown}`, make("span", { class: "bar", "aria-hidden": "true" }, fill));
}

function makeBadge(source) {
  return make("span", { class: `badge ${source}` }, source);
}

function makeVerdict(record) {
  const [mark, verdict] = verdictOf(record);
  const { answer: expected } = record.question;
  const found = record.found === null ? ["no answer found"] : makeResult(record.found);
  const said = {
    right: ["right: ", ...found],
    wrong: ["wrong: ", ...found, ...(expected ? [", expected ", ...makeResult(expected)] : [])],
    failed: [`failed: ${record.error}`],
    unchecked: ["not checked"],
  }[verdict];
  return make("span", { class: `verdict ${verdict}` }, `${mark} `, said);
}

/** Bars of all steps with the threshold across, and who wrote them; a click leads to the step. */
function makeStrip(answer, stepElements) {
  const strip = make("div", { class: "strip", role: "group", "aria-label": "Rewards by step" });
  answer.record.steps.forEach((step, i) => {
    const go = () => {
      stepElements[i].scrollIntoView({ block: "center" });
      stepElements[i].focus({ preventScroll: true });
    };
    const bars = [
      step.rejected ? makeStripBar(step.rejected.reward, "draft rejected") : null,
      step.rejected && step.reward === null ? null : makeStripBar(step.reward, step.source),
    ];
    const rewards = step.rejected
      ? `rejected draft ${shownReward(step.rejected.reward)}, rewritten by the target`
      : `${step.source}, ${shownReward(step.reward)}`;
    const label = `Step ${i + 1}: ${rewards}`;
    strip.append(make(
      "button", { type: "button", "aria-label": label, title: label, click: go },
      make("span", { class: "bars" }, bars),
      make("span", { class: `foot ${step.source}` }, step.source[0].toUpperCase())));
  });
  strip.append(make("span", { class: "threshold-line", "aria-hidden": "true" }));
  return strip;
}

const shownReward = (reward) => (reward === null ? "no reward" : `reward ${fixed(reward)}`);

function makeStripBar(reward, kind) {
  const bar = make("i", { class: `${kind}${reward === null ? " unscored" : ""}` });
  bar.style.height = `${100 * Math.max(0.04, reward ?? 0.04)}%`;
  return bar;
}

const COSTS = { draft: "draft", target: "target", prm: "PRM (read)", discarded: "discarded" };

/** Tokens and time of each model, a row each; what a record does not tell is left out. */
function makeCosts(record) {
  const { counts, role_seconds: seconds } = record;
  const tokens = {
    draft: counts.draft_tokens, target: counts.target_tokens, prm: counts.prm_tokens_read,
    discarded: counts.discarded_tokens,
  };
  const kinds = Object.keys(COSTS).filter((kind) => tokens[kind] || seconds?.[kind]);
  if (kinds.length === 0) return null;
  const columns = [
    ["tokens", tokens, grouped],
    ...(seconds ? [["time", seconds, shownSeconds]] : []),
  ];
  return make(
    "table", { class: "costs" },
    make("caption", null, `${seconds ? "Tokens and time" : "Tokens"} by role`),
    make("thead", null, make("tr", null, make("td", null),
      columns.flatMap(([title]) => [make("th", { scope: "col" }, title), make("td", null)]))),
    make("tbody", null, kinds.map((kind) => make(
      "tr", null, make("th", { scope: "row" }, COSTS[kind]),
      columns.flatMap(([, values, shown]) => makeCost(kind, values, shown))))));
}

/** A figure and its bar, as two cells. */
function makeCost(kind, values, shown) {
  const value = values[kind];
  const fill = make("span", { class: `fill ${kind}` });
  const most = Math.max(...Object.values(values).filter((other) => other));
  fill.style.width = `${value ? (100 * value) / most : 0}%`;
  return [
    make("td", null, value === undefined ? "" : shown(value)),
    make("td", { class: "bar-cell", "aria-hidden": "true" }, value ? fill : ""),
  ];
}

function makeFigures(record) {
  const { counts, role_seconds: seconds } = record;
  const { steps_accepted: kept, steps_rejected: rejected } = counts;
  const figures = [
    !kept && !rejected ? null : `${counted(kept, "draft step")} kept, ${grouped(rejected)} rejected`,
    counts.flops_generated ? `${shownFlops(counts.flops_generated)} for what was written` : null,
    counts.flops_all ? `${shownFlops(counts.flops_all)} for all that was read` : null,
    seconds ? `${shownSeconds(seconds.draft + seconds.target + seconds.prm)} in passes` : null,
    !seconds && record.seconds ? shownSeconds(record.seconds) : null,
  ].filter((figure) => figure !== null);
  return make("p", { class: "figures" }, figures.join(" · "));
}

function shownFlops(flops) {
  const units = [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6]];
  const [unit, size] = units.find(([, least]) => flops >= least) ?? units.at(-1);
  return `${Number((flops / size).toPrecision(3))}\u00a0${unit}FLOPs`;
}

function shownSeconds(seconds) {
  if (seconds >= 1) return `${fixed(seconds)}\u00a0s`;
  return `${seconds >= 0.1 ? Math.round(1000 * seconds) : fixed(1000 * seconds, 1)}\u00a0ms`;
}

function makeStep(step, i, isScored) {
  const name = step.rejected ? "rewrites a rejected draft" : null;
  const body = make("div", { class: "text" }, makeText(step.text.trimEnd()));
  const decision = decisionOf(step);
  const head = make(
    "header", null, make("span", { class: "number" }, `Step ${i + 1}`), makeBadge(step.source),
    name ? make("span", { class: "note" }, name) : null,
    step.reward === null && (step.rejected || !isScored) ? null : makeReward(step.reward),
    decision ? make("span", { class: "what-if", hidden: "" }) : null);
  return make(
    "li", { class: `step ${step.source}`, tabindex: "-1" }, head, body,
    step.rejected ? makeRejected(step) : null,
    step.candidates.length ? makeCandidates(step.candidates) : null);
}

/** Rejected draft and rewrite side by side; made when it is unfolded, as comparing takes time. */
function makeRejected(step) {
  const details = make(
    "details", { class: "rejected" },
    make("summary", null, "Rejected draft ", makeReward(step.rejected.reward)));
  makeWhenOpen(details, () => {
    const draft = splitWords(step.rejected.text.trimEnd());
    const rewrite = splitWords(step.text.trimEnd());
    const [draftDiffers, rewriteDiffers] = differingWords(draft, rewrite);
    const isSame = ![...draftDiffers, ...rewriteDiffers].some(Boolean);
    return make(
      "div", { class: "pair" },
      isSame ? make("p", { class: "note" }, "The target wrote the same words.") : null,
      make("section", { class: "draft" }, make("h4", null, "draft, rejected"),
        make("div", { class: "text" }, makeMarked(draft, draftDiffers, "del"))),
      make("section", { class: "target" }, make("h4", null, "target, in its place"),
        make("div", { class: "text" }, makeMarked(rewrite, rewriteDiffers, "ins"))));
  });
  return details;
}

function makeCandidates(candidates) {
  const details = make(
    "details", { class: "candidates" },
    make("summary", null, `${counted(candidates.length, "candidate")} not taken`));
  makeWhenOpen(details, () => make("ol", null, candidates.map((candidate) => make(
    "li", { class: `step ${candidate.source}` },
    make("header", null, makeBadge(candidate.source), makeReward(candidate.reward)),
    make("div", { class: "text" }, makeText(candidate.text.trimEnd()))))));
  return details;
}

function makeSamples(record) {
  const details = make(
    "details", { class: "samples" },
    make("summary", null, `${counted(record.samples.length, "sample")} to choose from`));
  makeWhenOpen(details, () => make("ol", null, record.samples.map((sample) => {
    const [mark, verdict] = verdictOf(sample);
    return make(
      "li", { class: "sample" },
      make("header", null,
        make("span", { class: `verdict ${verdict}` }, `${mark} ${verdict}: `,
          makeResult(sample.found ?? "no answer found")),
        sample.reward === null ? null : makeReward(sample.reward)),
      make("div", { class: "text" }, makeText(sample.text)));
  })));
  return details;
}

function makeWhenOpen(details, makeContent) {
  details.fill = () => {
    if (details.children.length === 1) details.append(makeContent());
  };
  details.addEventListener("toggle", () => {
    if (details.open) details.fill();
  });
}

/** The whole of an answer as an article, with a method `showThreshold(threshold or null)`. */
function makeAnswer(answer) {
  const { record } = answer;
  const isScored = record.steps.some((step) => (step.rejected ?? step).reward !== null);
  const steps = record.steps.map((step, i) => makeStep(step, i, isScored));
  const strip = makeStrip(answer, steps);
  const whatIf = make("p", { class: "what-if-sum", role: "status" });
  const ending = record.finish_reason === "stop" ? null : `ended by ${record.finish_reason}`;
  const article = make(
    "article", { "aria-label": answer.label },
    make("header", null,
      make("h3", null, answer.label),
      makeVerdict(record),
      make("p", { class: "note" }, [
        data.runs.length > 1 ? data.runs[answer.run].name : null,
        record.seed === null ? null : `seed ${record.seed}`,
        ending,
      ].filter((part) => part).join(" · "))),
    make("div", { class: "overview" },
      isScored ? make("div", { class: "rewards" }, strip, makeLegend(answer)) : null,
      makeCosts(record)),
    makeFigures(record),
    answer.decisions.length ? whatIf : null,
    steps.length
      ? make("ol", { class: "steps" }, steps)
      : make("div", { class: "text whole" }, makeText(record.text)),
    record.samples?.length ? makeSamples(record) : null);
  article.showThreshold = (threshold) => {
    const line = threshold ?? ranAt(record);
    strip.classList.toggle("cut", line !== null);
    strip.style.setProperty("--threshold", line ?? 0);
    showDecisions(record.steps, steps, threshold);
    whatIf.textContent = threshold === null ? "" : whatIfText(answer, threshold);
  };
  return article;
}

function makeLegend(answer) {
  const sources = new Set(answer.record.steps.map((step) => step.source));
  return make(
    "p", { class: "legend" },
    make("span", null, "Height: reward"),
    make("span", { class: "line-key" }, make("i", { class: "line" }), "threshold"),
    sources.has("draft") ? make("span", null, make("i", { class: "draft" }), "D: draft") : null,
    sources.has("target") ? make("span", null, make("i", { class: "target" }), "T: target") : null,
    answer.rejections
      ? make("span", null, make("i", { class: "draft rejected" }), "rejected draft, rewritten")
      : null);
}

function showDecisions(steps, elements, threshold) {
  let changedBefore = false;
  steps.forEach((step, i) => {
    const decision = decisionOf(step);
    const badge = elements[i].querySelector(".what-if");
    elements[i].classList.toggle("after-change", threshold !== null && changedBefore);
    if (!decision) return;
    badge.hidden = threshold === null;
    if (threshold === null) return;
    const then = keptAt(threshold, decision);
    const changed = then !== decision.kept;
    badge.classList.toggle("changed", changed);
    badge.textContent = `${then ? "kept" : "rejected"} at ${fixed(threshold)}${changed ? ": another decision" : ""}`;
    changedBefore ||= changed;
  });
}

function whatIfText(answer, threshold) {
  const { all, kept, keptThen, changed } = countDecisions([answer], threshold);
  const sum = `At ${fixed(threshold)}, ${keptThen} of ${counted(all, "draft step")} kept ` +
    `(as it ran: ${kept}).`;
  if (changed === 0) return `${sum} No decision changes.`;
  return `${sum} ${counted(changed, "decision changes", "decisions change")}; ` +
    "after the first, the models would have written other steps than those shown.";
}
