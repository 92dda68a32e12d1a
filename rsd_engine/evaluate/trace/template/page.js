// Puts the page together: filters, list, the answer in sight, threshold, keys, light and dark.

const byId = (id) => document.getElementById(id);
const reading = byId("reading");
const list = new AnswerList(byId("list"), (answer) => showAnswer(answer));
const filters = ["search", "verdict", "order", "method", "run"];
let articles = []; // in sight: one, or two side by side
let threshold = null; // null: as it ran

function fillSelect(id, options) {
  byId(id).append(...options.map(([value, text]) => make("option", { value }, text)));
}

function fillFilters() {
  const several = data.runs.length > 1;
  const verdicts = Object.entries(VERDICTS).filter(([name]) => name !== "differ" || several);
  fillSelect("verdict", verdicts.map(([name, [text]]) => [name, text]));
  fillSelect("order", Object.entries(ORDERS).map(([name, [text]]) => [name, text]));
  const labels = [...new Set(answers.map((answer) => answer.label))];
  fillSelect("method", [["", "all methods"], ...labels.map((label) => [label, label])]);
  byId("method-label").hidden = labels.length < 2;
  fillSelect("run", [...data.runs.map((run, r) => [r, run.name]), ["", "all runs"]]);
  byId("run-label").hidden = !several;
}

function applyFilters(event) {
  const shown = chosenAnswers(Object.fromEntries(filters.map((id) => [id, byId(id).value])));
  list.show(shown, event?.target.id === "order" ? null : list.chosen);
  showCount();
  markHits(reading, wordsOf(byId("search").value));
}

function showCount() {
  const { shown } = list;
  const checked = shown.filter(({ record }) => typeof record.correct === "boolean");
  const right = checked.filter(({ record }) => record.correct).length;
  const parts = [counted(shown.length, "answer")];
  if (checked.length) parts.push(`${grouped(right)} right (${fixed((100 * right) / checked.length, 1)} %)`);
  if (threshold !== null) {
    const { all, keptThen, kept, answersChanged } = countDecisions(shown, threshold);
    parts.push(
      `at ${fixed(threshold)}: ${grouped(keptThen)} of ${counted(all, "draft step")} kept ` +
      `(as it ran: ${grouped(kept)}), ${counted(answersChanged, "answer")} decided otherwise`);
  }
  byId("count").textContent = parts.join(", ");
}

function showAnswer(answer) {
  if (!answer) {
    articles = [];
    reading.replaceChildren(make("p", { class: "note" }, "No answer fits these filters."));
    return;
  }
  const { question } = answer.record;
  const beside = make("div", { class: "articles" });
  const others = othersOf(answer);
  const partner = partnerOf(answer);
  const choice = make("select", { change: () => showBeside(others[choice.value]) },
    make("option", { value: "" }, "nothing"),
    others.map((other, i) => make("option", { value: i }, nameOf(other))));
  function showBeside(other) {
    articles = [answer, ...(other ? [other] : [])].map(makeAnswer);
    beside.replaceChildren(...articles);
    articles.forEach((article) => article.showThreshold(threshold));
    markHits(reading, wordsOf(byId("search").value));
  }
  if (partner) choice.value = others.indexOf(partner);
  reading.replaceChildren(
    make("div", { class: "back" },
      make("button", { type: "button", click: closeAnswer }, "← Answers"),
      makeStepButton("‹", "Previous answer", -1),
      makeStepButton("›", "Next answer", 1)),
    make("section", { class: "question" },
      make("h2", null, `Question ${question.id} `,
        make("a", { href: `#answer-${answer.index + 1}`, "aria-label": "Link to this answer" }, "#")),
      question.source ? make("p", { class: "note" }, question.source) : null,
      make("div", { class: "text" }, makeText(question.text || "(the text was not given)")),
      question.answer
        ? make("p", { class: "expected" }, "Expected: ", makeResult(question.answer)) : null),
    make("div", { class: "tools" },
      answer.decisions.length || partner?.decisions.length ? makeSlider(answer) : null,
      others.length ? make("label", null, "Beside it ", choice) : null),
    beside);
  showBeside(partner);
  reading.scrollTop = 0;
}

/** Where there are no keys: to the answer before or behind this one. */
function makeStepButton(sign, label, by) {
  const at = list.at + by;
  return make(
    "button",
    {
      type: "button", "aria-label": label, disabled: !list.shown[at],
      click: () => { list.choose(at); reading.focus(); },
    },
    sign);
}

function nameOf(answer) {
  const run = data.runs.length > 1 ? `${data.runs[answer.run].name}: ` : "";
  const seed = answer.record.seed === null ? "" : `, seed ${answer.record.seed}`;
  return `${run}${answer.label}${seed} ${verdictOf(answer.record)[0]}`;
}

function makeSlider(answer) {
  const output = make("output", null);
  const slider = make("input", {
    type: "range", min: 0, max: 1, step: 0.01, "aria-describedby": "slider-note",
    value: threshold ?? ranAt(answer.record) ?? 0.7,
    input: () => setThreshold(Number(slider.value)),
  });
  const reset = make("button", { type: "button", click: () => setThreshold(null) }, "As it ran");
  function setThreshold(value) {
    threshold = value;
    output.textContent = value === null ? "as it ran" : fixed(value);
    slider.setAttribute("aria-valuetext", output.textContent);
    reset.hidden = value === null;
    articles.forEach((article) => article.showThreshold(value));
    showCount();
  }
  setThreshold(threshold);
  return make(
    "div", { class: "slider" },
    make("label", null, "Another threshold ", slider), output, reset,
    make("p", { id: "slider-note", class: "note" },
      "Shows which steps it would have kept. Decisions only: the texts are those of the run."));
}

function openAnswer() {
  if (!list.chosen) return;
  document.body.classList.add("reading");
  reading.focus();
}

function closeAnswer() {
  document.body.classList.remove("reading");
  byId("list").focus();
}

/** Opens the answer that a link names, as `page.html#answer-12`. */
function openLinked() {
  const number = Number(location.hash.match(/^#answer-(\d+)$/)?.[1]);
  const at = list.shown.findIndex((answer) => answer.index + 1 === number);
  if (at < 0) return;
  list.choose(at);
  openAnswer();
}

function unfoldAll(open = [...reading.querySelectorAll("details")].some((one) => !one.open)) {
  for (const details of reading.querySelectorAll("details")) {
    if (open) details.fill(); // at once: printing does not wait
    details.open = open;
  }
}

const KEYS = {
  j: () => list.choose(list.at + 1),
  k: () => list.choose(list.at - 1),
  "/": () => { closeAnswer(); byId("search").select(); },
  "?": () => byId("help").showModal(),
  o: () => unfoldAll(),
  Escape: closeAnswer,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = event.target.matches("input:not([type=range]), select");
  if (typing && event.key !== "Escape") return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function onListKey(event) {
  const page = Math.floor(byId("list").clientHeight / ROW_HEIGHT);
  const moves = {
    ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -list.at, End: Infinity,
  };
  if (event.key in moves) list.choose(list.at + moves[event.key]);
  else if (event.key === "Enter") openAnswer();
  else return;
  event.preventDefault();
}

const THEMES = { "": "Colours: system", light: "Colours: light", dark: "Colours: dark" };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = THEMES[theme];
  try {
    localStorage.setItem("rsd-trace-theme", theme);
  } catch { /* a page opened from a file may have no storage */ }
}

function storedTheme() {
  try {
    return localStorage.getItem("rsd-trace-theme") ?? "";
  } catch {
    return "";
  }
}

function start() {
  document.documentElement.classList.toggle("no-math-font", lacksMathFont());
  fillFilters();
  setTheme(storedTheme() in THEMES ? storedTheme() : "");
  byId("summary").textContent = data.runs
    .map((run) => `${run.name}: ${counted(run.records.length, "answer")}`).join(" · ");
  applyFilters(null);
  openLinked();
  addEventListener("hashchange", openLinked);
  byId("filters").addEventListener("input", applyFilters);
  byId("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("list").focus();
  });
  byId("list").addEventListener("keydown", onListKey);
  byId("list").addEventListener("open", openAnswer);
  byId("help-button").addEventListener("click", KEYS["?"]);
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
  });
  document.addEventListener("keydown", onKey);
  addEventListener("beforeprint", () => unfoldAll(true));
}

start();
