// One job: what it is, what came of it, and the course of its move; of a drain, of each of them.

import { get } from "./api.js";
import { schedule } from "./checked.js";
import { Course } from "./course.js";
import { abort, cleanup } from "./dialogs.js";
import { announce, button, el, facts, fill } from "./dom.js";
import { report, story as storyOf } from "./errands.js";
import { counted, Guests, guestsOf } from "./guests.js";
import { left, trouble } from "./problem.js";
import { answered, asking, collectionOf, known, look, may, titleOf } from "./store.js";
import { moment, seconds } from "./words.js";
import { ABORTED, state } from "./view_jobs.js";

export function view(main, [collection, id]) {
  const single = collection !== "drains";
  const head = el("div", {});
  const waiting = el("div", {});
  const end = el("div", {});
  const rest = el("div", {});
  const course = single ? new Course() : null;
  const guests = single ? null : new Guests();
  const title = el("h1", { tabindex: "-1" }, "A job");
  let story = null;
  let fetched = "";
  let heard = 0;
  let said = "";

  const draw = () => {
    const job = known.jobs.get(id);
    if (!job || collectionOf(job) !== collection) return;
    if (title.textContent !== titleOf(job)) title.textContent = titleOf(job);
    fill(head, [job, known.me], () => overview(job));
    if (single) drawMove(job);
    else drawMany(job);
    if (job.begun !== null && fetched !== job.state) {
      fetched = job.state;
      const lines = known.lines.get(id)?.length ?? 0;
      storyOf(job).then((found) => {
        story = found;
        heard = found ? lines : 0;
        draw();
      }, () => (fetched = ""));
    }
  };

  const drawMove = (job) => {
    const over = job.state === "ended";
    const progress = [...(known.progress.get(id)?.values() ?? [])][0];
    fill(waiting, over || Boolean(progress), () => (over || progress ? [] : nothingYet()));
    course.update({
      what: job.what,
      progress,
      points: [...(known.points.get(id)?.values() ?? [])][0] ?? [],
      story,
      plan: known.plans.get(id)?.plan ?? story?.plan ?? null,
      over,
      ok: job.outcome === "OK",
      aborted: job.exit_code === ABORTED,
      result: job.result,
      error: job.error,
      besides: { key: [story?.entry.id, job.exit_code, known.me], build: () => actions(job, story) },
    });
    speak(job, !over && progress ? `, step ${progress.number} of ${progress.steps}: ${progress.sentence}` : "");
  };

  const drawMany = (job) => {
    const planned = known.plans.get(id)?.schedule ?? (story?.plan?.legs ? story.plan : null);
    const all = guestsOf(job, planned);
    const over = job.state === "ended";
    fill(waiting, over || all.length > 0, () => (over || all.length ? [] : nothingYet()));
    fill(end, [job.error, over && story?.entry.id], () => [
      over && job.error ? trouble(job.error) : null,
      over && story ? el("p", {}, reportLink(story)) : null,
    ]);
    guests.update(job, all);
    const lines = happened(job, story, heard);
    fill(rest, [planned, lines.length, lines.at(-1)?.words], () => [
      planned ? el("section", { "aria-labelledby": "plan" }, el("h2", { id: "plan" }, "Plan"), schedule(planned)) : null,
      lines.length ? el("section", { "aria-labelledby": "lines" }, el("h2", { id: "lines" }, "What happened"), lineList(lines)) : null,
    ]);
    // Who set out is not read out, who came to an end is.
    speak(job, over ? "" : `, ${counted(all.filter((each) => each.moved || each.stayed)) || "no guest has moved yet"}`);
  };

  /** Only what changes seldom is read out: the state and the step, never a figure. */
  const speak = (job, more) => {
    const words = `${titleOf(job)}: ${job.state === "ended" ? (job.outcome === "OK" ? "done" : `ended with ${job.outcome}`) : job.state}${more}`;
    if (said && said !== words) announce(words);
    said = words;
  };

  main.append(...[title, head, waiting, end, course?.element, guests?.element, rest].filter(Boolean));
  if (!known.jobs.has(id)) {
    head.replaceChildren(el("p", { class: "waiting" }, "Asking for it ..."));
    const begun = asking();
    get(`/v1/${collection}/${encodeURIComponent(id)}`).then(
      (job) => {
        answered(job, begun);
        draw();
      },
      (problem) => head.replaceChildren(trouble(problem, { title: "It cannot be shown", level: "h2" })),
    );
  }
  draw();
  return { title: `Job ${id.slice(0, 8)}`, close: look(draw) };
}

function overview(job) {
  const over = job.state === "ended";
  return [
    el("p", { class: "state" }, state(job, { short: true })),
    facts([
      ["From, to", job.target ? `${job.source} to ${job.target}` : null],
      ["Asked by", job.subject],
      ["Asked", moment(job.asked)],
      ["Begun", moment(job.begun)],
      ["Ended", moment(job.ended)],
      ["Took", over && job.begun !== null ? seconds(job.ended - job.begun) : null],
      ["Priority", job.priority === "normal" ? null : job.priority],
      ["Services that ended meanwhile", job.interruptions ? String(job.interruptions) : null],
      ["Job", el("code", {}, job.id)],
    ]),
    !over && may("move") ? el("div", { class: "actions" }, button("Abort ...", () => abort(job), { data: { focus: "abort" } })) : null,
  ];
}

const nothingYet = () => el("p", { class: "waiting" }, "Nothing more is told of it yet ...");

const reportLink = (story) => el("a", { href: report(story.entry.id), target: "_blank", rel: "noopener" }, "The report (in a new tab)");

/** What can be done once it has ended. */
function actions(job, story) {
  const guest = { name: job.about, uuid: job.uuid };
  const mend = left(job.exit_code) && may("move");
  if (!mend && !story) return null;
  return el(
    "div",
    { class: "actions" },
    mend ? button("Clean up ...", () => cleanup(guest), { class: "primary", data: { focus: "clean" } }) : null,
    story ? reportLink(story) : null,
  );
}

const SAID = {
  begun: (it) => `${it.name} sets out from ${it.source} to ${it.target}`,
  moved: (it) => `${it.name} is on ${it.target} (${it.how}, ${seconds(it.seconds)})`,
  stays: ({ stayed, again }) => `${stayed.name} stays on ${stayed.source}: ${stayed.finding.sentence}${again ? " It is tried again." : ""}`,
  says: (it) => it,
};

/** What a drain has told: what was heard here, where that is all; else what the journal has, and what was heard since. */
function happened(job, story, heard) {
  const lines = known.lines.get(job.id) ?? [];
  const own = lines.map((line) => ({ at: line.at, words: SAID[line.kind]?.(line.value) ?? line.kind }));
  const written = (story?.rows ?? [])
    .filter((row) => row.kind === "moment" && row.data.said_by === "lvmigrate")
    .map((row) => ({ at: story.entry.began + row.at_s, words: row.name }));
  if (job.state !== "ended") return [...written, ...own.slice(heard)];
  const went = (kind) => lines.filter((line) => line.kind === kind).length >= (job.result?.moved.length ?? Infinity);
  return !written.length || (own.length && went("begun") && went("moved")) ? own : written;
}

const lineList = (lines) => el("ol", { class: "lines" }, lines.map(({ at, words }) => el("li", {}, moment(at), " ", words)));
