"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

// Elements, texts with mathematics, and which words of two texts differ.

/** An element. Strings become text nodes, never markup; what is null is left out. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** MathML of a tree [tag, attributes, ...children], which Python made of parsed LaTeX. */
function makeMath(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, attributes, ...children] = tree;
  const element = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map(makeMath));
  return element;
}

/** Whether indices would stand on the line, x_2 as x2: no font has the measures of mathematics. */
function lacksMathFont() {
  const probe = makeMath(["math", {}, ["msub", {}, ["mi", {}, "x"], ["mi", {}, "x"]]]);
  document.body.append(probe);
  const [base, index] = [...probe.querySelectorAll("mi")].map((one) => one.getBoundingClientRect());
  probe.remove();
  return index.bottom <= base.bottom;
}

const FORMULA = new RegExp(data.formula, "gs");
const WORD = /(?:\p{N}+(?:[.,]\p{N}+)*|\p{L}+|\S)\s*|\s+/gu;

/** A piece of a text as nodes; formulas that Python could parse become mathematics. */
function makeText(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(FORMULA)) {
    if (!Object.hasOwn(data.formulas, match[0])) continue;
    const tree = JSON.parse(data.formulas[match[0]]);
    const isBlock = tree[1].display === "block"; // the line ends before and behind it anyhow
    const before = text.slice(end, match.index);
    const after = match.index + match[0].length;
    const [point] = text.slice(after).match(/^[.,;:!?)]*/);
    const [space] = text.slice(after + point.length).match(isBlock ? /^[ \t]*\n?/ : /^/);
    nodes.push(
      isBlock ? before.replace(/\n[ \t]*$/, "") : before,
      make("span", { class: "formula" }, makeMath(tree), point));
    end = after + point.length + space.length;
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

/** An answer as nodes: LaTeX, as data sets have it, is mathematics without its delimiters, too. */
function makeResult(answer) {
  const formula = `\\(${answer}\\)`;
  return makeText(Object.hasOwn(data.formulas, formula) ? formula : answer);
}

/** Words with the space behind them; a formula is one word. */
function splitWords(text) {
  const words = [];
  let end = 0;
  const addPlain = (plain) => words.push(...(plain.match(WORD) ?? []));
  for (const match of text.matchAll(FORMULA)) {
    addPlain(text.slice(end, match.index));
    words.push(match[0]);
    end = match.index + match[0].length;
  }
  addPlain(text.slice(end));
  return words;
}

const MOST_CELLS = 4e6; // of the table of the longest common subsequence

/** For each word of two lists, whether the other lacks it: [of a, of b]. */
function differingWords(a, b) {
  const same = (i, j) => a[i].trimEnd() === b[j].trimEnd();
  let start = 0;
  while (start < a.length && start < b.length && same(start, start)) start += 1;
  let [endA, endB] = [a.length, b.length];
  while (endA > start && endB > start && same(endA - 1, endB - 1)) {
    endA -= 1;
    endB -= 1;
  }
  const differs = [a, b].map((words, which) =>
    words.map((_, i) => i >= start && i < (which === 0 ? endA : endB)));
  const [rows, columns] = [endA - start, endB - start];
  if (rows * columns > MOST_CELLS) return differs;
  const width = columns + 1;
  const longest = new Uint32Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      longest[i * width + j] = same(start + i, start + j)
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns; ) {
    if (same(start + i, start + j)) {
      differs[0][start + i] = differs[1][start + j] = false;
      i += 1;
      j += 1;
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return differs;
}

/** A text whose differing words stand in elements of this tag, neighbours in one. */
function makeMarked(words, differs, tag) {
  const nodes = [];
  for (let start = 0; start < words.length; ) {
    let end = start + 1;
    while (end < words.length && differs[end] === differs[start]) end += 1;
    const piece = words.slice(start, end).join("");
    const marked = differs[start] ? piece.trimEnd() : "";
    if (marked) nodes.push(make(tag, null, makeText(marked)));
    nodes.push(...makeText(piece.slice(marked.length)));
    start = end;
  }
  return nodes;
}

/** Marks in an element what was searched for, where the browser can mark without new elements. */
function markHits(root, words) {
  if (!globalThis.Highlight) return;
  const ranges = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.toLowerCase();
    for (const word of words) {
      for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, Math.min(at + word.length, text.length));
        ranges.push(range);
      }
    }
  }
  CSS.highlights.set("hit", new Highlight(...ranges));
}
