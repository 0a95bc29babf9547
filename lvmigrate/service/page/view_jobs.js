// Every job: moves, drains, cleanups, rehearsals and failovers, newest first.

import { badge, el, fill, table } from "./dom.js";
import { code } from "./problem.js";
import { words } from "./progress.js";
import { addressOf, known, look, newestFirst, titleOf } from "./store.js";
import { moment } from "./words.js";

/** The exit code of what was aborted as asked: everything is as it was. */
export const ABORTED = 4;

const STATES = { queued: "calm", running: "warn", recovering: "warn" };

export function view(main) {
  const content = el("div", {});
  const draw = () => {
    const jobs = newestFirst();
    const now = jobs.filter((job) => job.state !== "ended");
    const over = jobs.filter((job) => job.state === "ended");
    const steps = now.map((job) => [job, ...[...(known.progress.get(job.id)?.values() ?? [])].map(words)]);
    fill(content, [steps, over.map((job) => job.id)], () => [
      el("h2", {}, "Waiting and under way"),
      now.length ? table("Jobs that wait or are under way", COLUMNS, now.map(row)) : el("p", { class: "dim" }, "Nothing is under way."),
      el("h2", {}, "Ended"),
      over.length ? table("Jobs that have ended", COLUMNS, over.map(row)) : el("p", { class: "dim" }, "No job has ended yet."),
    ]);
  };
  main.append(el("h1", { tabindex: "-1" }, "Jobs"), content);
  draw();
  return { title: "Jobs", close: look(draw) };
}

const COLUMNS = ["What", "State", "From, to", "Asked", "By"];

function row(job) {
  return [
    el("a", { href: addressOf(job), data: { focus: job.id } }, titleOf(job)),
    state(job),
    job.target ? `${job.source} to ${job.target}` : "",
    moment(job.asked),
    job.subject,
  ];
}

/** How a job is, in a word; with its code, why it waits, and how far it is. */
export function state(job, { short = false } = {}) {
  if (job.state === "ended") {
    return job.outcome === "OK" ? badge("done", "good") : [job.exit_code === ABORTED ? badge("aborted", "warn") : badge("not done", "bad"), " ", code(job.outcome)];
  }
  const progress = short ? [] : [...(known.progress.get(job.id)?.values() ?? [])];
  return [
    badge(job.state, STATES[job.state]),
    job.wish ? [" ", badge(`asked to ${job.wish}`, "warn")] : null,
    job.waits_for ? el("p", {}, `Waits for: ${job.waits_for}`) : null,
    progress.length === 1 ? el("p", {}, words(progress[0])) : null,
    progress.length > 1 ? el("p", {}, `${progress.length} guests under way`) : null,
  ];
}
