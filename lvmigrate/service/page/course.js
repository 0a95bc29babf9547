// The course of one move: how far it is and how it ended, what was told before and what came, its curves, its steps.

import { Chart } from "./chart.js";
import { forecastSentence } from "./checked.js";
import { badge, el, facts, fill, refresh, sentence, table } from "./dom.js";
import { findings, trouble } from "./problem.js";
import { bar, figures, setBar } from "./progress.js";
import { pointOf } from "./store.js";
import { bytes, kib, percent, rate, seconds } from "./words.js";

/**
 * Of the page's only move, or of one of many: `whose` is its guest's name then, and its headings stand one level lower
 * and are no landmarks, of which there would be too many to go by.
 */
export class Course {
  #whose;
  #level;
  #end = el("div", {});
  #now = el("div", {});
  #told = el("div", {});
  #steps = el("div", {});
  #curves;
  #charts;

  constructor(whose = "") {
    this.#whose = whose;
    this.#level = whose ? 3 : 2;
    const how = { level: `h${this.#level + 1}`, whose };
    this.#charts = [
      new Chart("Memory", [{ name: "Memory to go", field: "remaining", say: bytes }], how),
      new Chart(
        "Rates",
        [
          { name: "Sent", field: "rate", say: rate },
          { name: "Dirtied by the guest", field: "dirty", say: rate },
        ],
        how,
      ),
      new Chart("Disks", [{ name: "Disks behind", field: "behind", say: bytes }], how),
    ];
    this.#curves = this.#part("Curves", el("div", { class: "charts" }, this.#charts.map((chart) => chart.element)));
    this.#curves.hidden = true;
    this.element = el("div", { class: "course" }, this.#end, this.#now, this.#told, this.#curves, this.#steps);
  }

  /**
   * `progress`: the newest, while it is under way; `points`: those heard here; `story`: the journal's, with what was
   * before and with how each step went; `over`, `ok`, `aborted`: how it ended; `result` or `error`: what came of it;
   * `planned`: what a drain's plan has told of it, in words; `besides`: what else belongs to its outcome.
   */
  update({ what, progress, points, story, plan, over, ok, aborted, result, error, planned, besides }) {
    const under = !over && progress ? progress : null;
    fill(this.#now, Boolean(under), () => (under ? [this.#whose ? el("div") : bar(under), el("div", {})] : []));
    if (under) {
      if (!this.#whose) setBar(this.#now.firstChild, under);
      refresh(this.#now.lastChild, figures(under));
    }
    fill(this.#end, [over, result, error, besides?.key], () => (over ? this.#outcome(what, result, error, besides) : []));
    const forecast = plan?.forecast ?? result?.forecast;
    fill(this.#told, [forecast, result, planned], () =>
      forecast || planned ? this.#part("Forecast", planned ? el("p", {}, planned) : null, forecast ? forecasts(forecast, result) : null) : [],
    );
    fill(this.#steps, [plan?.steps, under?.number, over, ok, aborted, story?.entry.id, story?.rows.length], () =>
      plan?.steps ? this.#part("Steps", stepList(plan.steps, { over, ok, aborted }, under, story)) : [],
    );
    const all = [...before(story, points), ...points];
    for (const chart of this.#charts) chart.update(all);
    this.#curves.hidden = !all.length;
  }

  #part(title, ...children) {
    const name = title.toLowerCase();
    if (this.#whose) return el("div", { data: { part: name } }, el(`h${this.#level}`, {}, title), children);
    return el("section", { "aria-labelledby": name }, el(`h${this.#level}`, { id: name }, title), children);
  }

  #outcome(what, result, error, besides) {
    return this.#part(
      "Outcome",
      error ? trouble(error) : result ? outcome(what, result) : null,
      besides ? besides.build() : null,
    );
  }
}

function outcome(what, it) {
  if (what === "cleanup" || it.acts) {
    return [
      el("p", {}, it.node ? `${it.instance} is on ${it.node}${it.running ? ", and runs" : ""}.` : `${it.instance} is off everywhere.`),
      it.acts.length ? el("ol", {}, it.acts.map((act) => el("li", {}, sentence(act)))) : el("p", {}, "Everything was in order."),
      it.warnings.length ? findings(it.warnings) : null,
    ];
  }
  return [
    it.proven
      ? el("p", { class: "strong" }, `${it.instance} is on ${it.source} as before; the way to ${it.target} was tried.`)
      : el("p", { class: "strong" }, `${it.instance} ${it.running ? "runs" : "is"} on ${it.target}.`),
    it.proven?.length ? [el("p", {}, "What was proved:"), el("ul", {}, it.proven.map((each) => el("li", {}, sentence(each))))] : null,
    it.unproven?.length ? [el("p", {}, "What was not:"), el("ul", {}, it.unproven.map((each) => el("li", {}, sentence(each))))] : null,
    facts([
      ["In all", seconds(it.seconds)],
      ["Downtime", it.downtime_s === undefined ? null : seconds(it.downtime_s)],
      ["Dual-primary", it.dual_primary_s === undefined ? null : seconds(it.dual_primary_s)],
      ["Two primaries allowed", it.two_primaries_allowed_s === undefined ? null : seconds(it.two_primaries_allowed_s)],
      ["Memory sent", it.iterations === undefined ? null : `${bytes(it.memory_bytes)} in ${it.iterations} ${it.iterations === 1 ? "pass" : "passes"}`],
      ["Slowed down by", it.throttle_percent ? percent(it.throttle_percent) : null],
      ["Post-copy", it.post_copy ? "yes" : null],
      ["Disks compared", it.verified?.length ? it.verified.map(compared).join("; ") : null],
    ]),
    it.warnings?.length ? [el("p", {}, "Warnings:"), findings(it.warnings)] : null,
  ];
}

function compared(one) {
  const came = one.because ? "not to the end" : one.out_of_sync_kib ? `differs in ${kib(one.out_of_sync_kib)}` : "is the same on both nodes";
  return `${one.resource}/${one.volume} ${came}${one.skipped_kib ? `, ${kib(one.skipped_kib)} were left out` : ""}`;
}

function forecasts(it, came) {
  const row = (name, before, after) => [name, before ?? "no end without help", after ?? "-"];
  return [
    forecastSentence(it),
    table("What was told, and what came", ["What", "Told", "Came"], [
      row("Copy", it.seconds === null ? null : seconds(it.seconds), came?.copy_s ? seconds(came.copy_s) : null),
      row("Downtime", it.downtime_s === null ? null : seconds(it.downtime_s), came?.downtime_s === undefined ? null : seconds(came?.downtime_s)),
      row("Passes", it.passes === null ? null : String(it.passes), came?.iterations === undefined ? null : String(came.iterations)),
      row("Policy", it.advised, came?.policy || null),
    ]),
  ];
}

function stepList(steps, { over, ok, aborted }, progress, story) {
  const rows = story?.rows ?? [];
  const begun = new Map(rows.filter((row) => row.kind === "step").map((row) => [row.name, row.at_s]));
  const ended = new Map(rows.filter((row) => row.kind === "step end").map((row) => [row.name, row]));
  const current = progress?.number ?? null;
  return el(
    "ol",
    { class: "steps" },
    steps.map(([name, words], place) => {
      const number = place + 1;
      const last = ended.get(name);
      let how = ["not yet", "calm"];
      if (last?.data.error) how = aborted ? ["aborted", "warn"] : ["failed", "bad"];
      else if (current !== null && number === current) how = ["under way", "warn"];
      else if ((current !== null && number < current) || last || ok) how = ["done", "good"];
      else if (begun.has(name)) how = ["not finished", "bad"];
      else if (over) how = ["not begun", "calm"];
      const took = last && begun.has(name) ? ` ${seconds(last.at_s - begun.get(name))}` : "";
      return el(
        "li",
        { "aria-current": number === current ? "step" : null, class: how[1] },
        el("b", {}, name),
        `: ${words} `,
        badge(how[0], how[1]),
        took,
      );
    }),
  );
}

/** The points that the journal has and nobody here has heard. */
function before(story, heard) {
  const until = heard[0]?.at ?? Infinity;
  return (story?.rows ?? [])
    .filter((row) => (row.kind === "memory" || row.kind === "sync") && row.at_s < until)
    .map((row) => pointOf(row.at_s, row.kind === "memory" ? row.data : null, row.kind === "sync" ? row.data : null));
}

