// What went wrong, whole: the code and what it means, the sentence, every reason, what is known, what to do next.

import { Problem } from "./api.js";
import { badge, el, sentence } from "./dom.js";
import { known } from "./store.js";

/** Exit codes that leave something open, and how to say so. */
const OPEN = new Map([
  [5, "It could not be proved what happened. Nothing was undone and nothing forced: a person has to look."],
  [8, "The guest is on one node, and something of the move is still there: a person has to look."],
  [9, "The guest runs nowhere: a person has to look."],
  [70, "A defect of lvmigrate has ended it: a person has to look."],
]);

/** What a person is told of an end like that; empty: it left nothing open. */
export const left = (exitCode) => OPEN.get(exitCode) ?? "";

/** A code, with the way to what it means, for whoever the service tells it. */
export function code(name) {
  if (known.me === null) return el("code", {}, name);
  return el("a", { class: "code", href: `#/codes/${encodeURIComponent(name)}`, title: `What ${name} means` }, name);
}

/** A reason against something, or a warning. */
export function finding(each) {
  return el(
    "li",
    {},
    el("p", {}, code(each.code), " ", sentence(each.sentence)),
    each.hint ? el("p", { class: "hint" }, "Next: ", sentence(each.hint)) : null,
  );
}

export const findings = (all) => el("ul", { class: "findings" }, all.map(finding));

/** An error as `error_object` says it, or whatever else was caught. */
export function trouble(caught, { title = "", level = "h3" } = {}) {
  const error = caught instanceof Problem ? caught.error : caught;
  if (error instanceof Error) throw error; // a defect of the page's own: the console has it whole
  const open = left(error.exit_code);
  const reasons = error.findings ?? [];
  return el(
    "section",
    { class: `problem ${open ? "open" : ""}` },
    title ? el(level, {}, title) : null,
    open ? el("p", { class: "strong" }, badge("Look at this", "bad"), " ", open) : null,
    reasons.length
      ? [
          el("p", {}, reasons.length === 1 ? "One reason against it:" : `${reasons.length} reasons against it:`),
          findings(reasons),
        ]
      : [
          el("p", {}, code(error.code), " ", sentence(error.sentence)),
          list("What is known:", error.known),
          list("What is still there:", error.leftovers),
          error.hint ? el("p", { class: "hint" }, "Next: ", sentence(error.hint)) : null,
        ],
    error.detail ? el("details", { data: { focus: "detail" } }, el("summary", {}, "In the words of the node"), el("pre", { tabindex: "0" }, error.detail)) : null,
  );
}

function list(title, items) {
  return items?.length ? [el("p", {}, title), el("ul", {}, items.map((each) => el("li", {}, sentence(each))))] : null;
}
