// The list of answers. Only the rows in sight exist, so that thousands cost nothing.

const ROW_HEIGHT = 60; // pixels, as in style.css
const ROWS_BEYOND = 6; // drawn above and below what is in sight

class AnswerList {
  constructor(box, onChoose) {
    this.box = box;
    this.onChoose = onChoose;
    this.shown = [];
    this.at = -1;
    this.space = make("div", { class: "space", role: "presentation" });
    box.append(this.space);
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
  }

  get chosen() {
    return this.shown[this.at] ?? null;
  }

  /** Lists other answers, with `kept` chosen if it is among them, or the first. */
  show(shown, kept) {
    const before = this.chosen;
    this.shown = shown;
    this.space.style.height = `${shown.length * ROW_HEIGHT}px`;
    this.choose(Math.max(0, shown.indexOf(kept)), before);
  }

  choose(at, before = this.chosen) {
    this.at = Math.max(0, Math.min(at, this.shown.length - 1));
    const top = this.at * ROW_HEIGHT;
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + ROW_HEIGHT > scrollTop + clientHeight) {
      this.box.scrollTop = top + ROW_HEIGHT - clientHeight;
    }
    this.draw();
    if (this.chosen !== before) this.onChoose(this.chosen);
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
    const count = Math.ceil(this.box.clientHeight / ROW_HEIGHT) + 2 * ROWS_BEYOND;
    const last = Math.min(this.shown.length, first + count);
    const places = Array.from({ length: Math.max(0, last - first) }, (_, i) => first + i);
    // The chosen row is always there: screen readers are told of it by its id.
    if (this.chosen && (this.at < first || this.at >= last)) places.push(this.at);
    this.space.replaceChildren(...places.map((at) => this.makeRow(at)));
    if (this.chosen) this.box.setAttribute("aria-activedescendant", `row-${this.at}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  makeRow(at) {
    const answer = this.shown[at];
    const { record } = answer;
    const [mark, verdict] = verdictOf(record);
    const row = make(
      "div",
      {
        id: `row-${at}`, class: "row", role: "option", "aria-selected": String(at === this.at),
        "aria-posinset": at + 1, "aria-setsize": this.shown.length,
        click: () => { this.choose(at); this.box.dispatchEvent(new Event("open")); },
      },
      make("span", { class: `verdict ${verdict}`, title: verdict, "aria-label": verdict }, mark),
      make("span", { class: "row-id" }, record.question.id),
      make("span", { class: "row-label" }, answer.label),
      make("span", { class: "row-text" }, record.question.text.slice(0, 160) || record.text.slice(0, 160)),
      makeSparkline(record.steps),
    );
    row.style.top = `${at * ROW_HEIGHT}px`;
    return row;
  }
}

function verdictOf(record) {
  if (record.error) return ["!", "failed"];
  if (record.correct === true) return ["✓", "right"];
  if (record.correct === false) return ["✗", "wrong"];
  return ["·", "unchecked"];
}

/** One small bar a step; a rewrite, which has no reward of its own, shows the rejected draft's. */
function makeSparkline(steps) {
  const line = make("span", { class: "sparkline", "aria-hidden": "true" });
  for (const step of steps.slice(0, 24)) {
    const reward = (step.rejected ?? step).reward;
    const bar = make("i", { class: `${step.source}${reward === null ? " unscored" : ""}` });
    bar.style.height = `${Math.round(4 + 16 * (reward ?? 0.25))}px`;
    line.append(bar);
  }
  return line;
}
