// What the records say: figures of each answer, decisions at a threshold, filters, orders, pairs.

/** The policy's decision on a draft's step that led to a step of the answer; null if none was. */
function decisionOf(step) {
  if (step.rejected) return { reward: step.rejected.reward, kept: false };
  if (step.source === "draft" && step.reward !== null) return { reward: step.reward, kept: true };
  return null;
}

/** As the engine decides: in float32, and an unscored step is never kept. */
function keptAt(threshold, decision) {
  return decision.reward !== null && Math.fround(decision.reward) >= Math.fround(threshold);
}

/** The threshold of the run, where it lies on the scale of rewards; null if there was none. */
function ranAt(record) {
  const { threshold } = record.settings;
  return threshold >= 0 && threshold <= 1 ? threshold : null;
}

/** Largest fall from one scored step to the next, rejected drafts in place of their rewrites. */
function largestDrop(steps) {
  const rewards = steps
    .map((step) => (step.rejected ?? step).reward)
    .filter((reward) => reward !== null);
  return rewards.reduce(
    (most, reward, i) => (i === 0 ? most : Math.max(most, rewards[i - 1] - reward)), 0);
}

function settingsText(record) {
  const shown = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  return Object.entries(record.settings).map(([name, value]) => `${name} ${shown(value)}`)
    .join(", ");
}

function describe(record, run, index) {
  record.text ??= record.steps.map((step) => step.text).join("");
  const decisions = record.steps.map(decisionOf).filter((decision) => decision !== null);
  const settings = settingsText(record);
  return {
    record,
    run,
    index,
    decisions,
    label: settings ? `${record.method} (${settings})` : record.method,
    rejections: record.steps.filter((step) => step.rejected).length,
    drop: largestDrop(record.steps),
    lowest: Math.min(2, ...decisions.map((decision) => decision.reward ?? 0)),
    searched: [
      record.question.id, record.question.text, record.text, record.found ?? "",
      ...record.steps.map((step) => step.rejected?.text ?? ""),
    ].join("\n").toLowerCase(),
  };
}

const answers = data.runs.flatMap((run, r) => run.records.map((record) => [record, r]))
  .map(([record, r], index) => describe(record, r, index));
const byQuestion = new Map();
for (const answer of answers) {
  const { id } = answer.record.question;
  if (!byQuestion.has(id)) byQuestion.set(id, []);
  byQuestion.get(id).push(answer);
}

/** The other answers to the same question, those of the other run first, alike methods before. */
function othersOf(answer) {
  const distance = (other) =>
    4 * (other.run === answer.run) + 2 * (other.label !== answer.label) +
    (other.record.seed !== answer.record.seed);
  return byQuestion.get(answer.record.question.id)
    .filter((other) => other !== answer)
    .sort((a, b) => distance(a) - distance(b) || a.index - b.index);
}

/** The answer of the other run that stands beside this one; null if there is none. */
function partnerOf(answer) {
  const [first] = othersOf(answer);
  return first && first.run !== answer.run ? first : null;
}

const VERDICTS = {
  all: ["all answers", () => true],
  wrong: ["wrong", (answer) => answer.record.correct === false],
  right: ["right", (answer) => answer.record.correct === true],
  rejected: ["with rejections", (answer) => answer.rejections > 0],
  differ: ["runs that differ", (answer) => {
    const other = partnerOf(answer);
    return other !== null && other.record.correct !== answer.record.correct;
  }],
  failed: ["failed", (answer) => Boolean(answer.record.error)],
};

const ORDERS = {
  file: ["as in the file", (answer) => answer.index],
  rejections: ["most rejections", (answer) => -answer.rejections],
  drop: ["largest drop", (answer) => -answer.drop],
  lowest: ["lowest reward", (answer) => answer.lowest],
  target: ["most target tokens", (answer) => -(answer.record.counts.target_tokens ?? 0)],
};

const wordsOf = (search) => search.toLowerCase().split(/\s+/).filter((word) => word);

/** The answers that a choice of filters lets through, in its order. */
function chosenAnswers({ search, verdict, order, method, run }) {
  const words = wordsOf(search);
  const [, passes] = VERDICTS[verdict];
  const [, rank] = ORDERS[order];
  return answers
    .filter((answer) =>
      (run === "" || answer.run === Number(run)) &&
      (method === "" || answer.label === method) &&
      passes(answer) && words.every((word) => answer.searched.includes(word)))
    .sort((a, b) => rank(a) - rank(b) || a.index - b.index);
}

/** Decisions of some answers: how many, how many kept as it ran and at a threshold, changed. */
function countDecisions(some, threshold) {
  const counts = { all: 0, kept: 0, keptThen: 0, changed: 0, answersChanged: 0 };
  for (const answer of some) {
    let changed = 0;
    for (const decision of answer.decisions) {
      const then = keptAt(threshold, decision);
      counts.all += 1;
      counts.kept += decision.kept;
      counts.keptThen += then;
      changed += then !== decision.kept;
    }
    counts.changed += changed;
    counts.answersChanged += changed > 0;
  }
  return counts;
}
