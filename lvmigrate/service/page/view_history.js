// What was done, by whomever: the journal's errands, each with its report.

import { get } from "./api.js";
import { badge, button, el, fill, table } from "./dom.js";
import { code, trouble } from "./problem.js";
import { report } from "./errands.js";
import { atEnd } from "./store.js";
import { moment, seconds } from "./words.js";

const FIRST = 50;
const MOST = 1000;

export function view(main, _parts, query) {
  const content = el("div", {}, el("p", { class: "waiting" }, "Reading the journal ..."));
  const instance = el("input", { id: "instance", name: "instance", type: "search", autocomplete: "off", value: query.get("guest") ?? "" });
  let most = FIRST;

  const again = async () => {
    const of = instance.value.trim();
    const words = new URLSearchParams({ most: String(most), ...(of ? { instance: of } : {}) });
    try {
      const { errands } = await get(`/v1/history?${words}`);
      fill(content, [errands, most], () => [
        errands.length
          ? table("Errands, newest first", ["Begun", "What", "From, to", "Outcome", "Took", "Report"], errands.map(row))
          : el("p", { class: "dim" }, of ? `Nothing is written of ${of}.` : "Nothing was done yet."),
        errands.length === most && most < MOST
          ? button("Show more", () => {
              most = Math.min(most * 4, MOST);
              again();
            }, { data: { focus: "more" } })
          : null,
      ]);
    } catch (problem) {
      fill(content, [problem.error, Date.now()], () => trouble(problem, { title: "The journal could not be read", level: "h2" }));
    }
  };

  const asked = (event) => {
    event.preventDefault();
    most = FIRST;
    again();
  };
  main.append(
    el("h1", { tabindex: "-1" }, "History"),
    el(
      "form",
      { class: "toolbar", role: "search", on: { submit: asked } },
      el("label", { for: "instance" }, "Only of the guest"),
      instance,
      el("button", { type: "submit" }, "Show"),
    ),
    content,
  );
  again();
  return { title: "History", close: atEnd(again) };
}

function row(errand) {
  return [
    moment(errand.began),
    `${errand.tasklet} ${errand.instance}`,
    errand.target && errand.target !== errand.source ? `${errand.source} to ${errand.target}` : errand.source,
    outcome(errand),
    seconds(errand.seconds),
    el("a", { href: report(errand.id), target: "_blank", rel: "noopener", "aria-label": `Report of ${errand.tasklet} ${errand.instance}, in a new tab` }, "Report"),
  ];
}

function outcome(errand) {
  if (errand.outcome === null) return badge("no end is written", "warn");
  if (errand.outcome === "OK") return badge("done", "good");
  return [errand.outcome === "ABORTED" ? badge("aborted", "warn") : badge("not done", "bad"), " ", code(errand.outcome), errand.sentence ? el("p", { class: "dim" }, errand.sentence) : null];
}
