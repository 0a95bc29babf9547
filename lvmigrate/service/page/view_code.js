// What a code means: what is the matter, what was changed, what to do.

import { get } from "./api.js";
import { el, facts, sentence } from "./dom.js";
import { trouble } from "./problem.js";

export function view(main, [name]) {
  const content = el("div", {}, el("p", { class: "waiting" }, "Looking it up ..."));
  main.append(
    el("h1", { tabindex: "-1" }, name),
    content,
    el("p", {}, el("a", { href: "#/nodes", on: { click: back } }, "Back")),
  );
  get(`/v1/codes/${encodeURIComponent(name)}`).then(
    (it) =>
      content.replaceChildren(
        el("p", { class: "strong" }, sentence(it.meaning)),
        facts([
          ["Changed", sentence(it.changed)],
          ["Do", sentence(it.remedy)],
          ["More", el("code", {}, it.where)],
        ]),
      ),
    (problem) => content.replaceChildren(trouble(problem)),
  );
  return { title: name, close: () => {} };
}

function back(event) {
  if (history.length < 2) return;
  event.preventDefault();
  history.back();
}
