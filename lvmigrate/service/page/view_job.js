// One job: what it is, its steps, its curves, what was told before and what came, and its outcome.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { forecastSentence, schedule } from "./checked.js";
import { abort, cleanup } from "./dialogs.js";
import { announce, badge, button, el, facts, fill, refresh, sentence, table } from "./dom.js";
import { finding, findings, left, trouble } from "./problem.js";
import { bar, figures, setBar } from "./progress.js";
import { answered, asking, collectionOf, known, look, may, pointOf, titleOf } from "./store.js";
import { bytes, moment, percent, rate, seconds } from "./words.js";
import { ABORTED, state } from "./view_jobs.js";

/** The clocks of the job and of the journal are one; what is written of each is a little apart. */
const APART_S = 2;

export function view(main, [collection, id]) {
  const head = el("div", {});
  const now = el("div", {});
  const end = el("div", {});
  const told = el("div", {});
  const steps = el("div", {});
  const rest = el("div", {});
  const charts = [
    new Chart("Memory", [{ name: "Memory to go", field: "remaining", say: bytes }]),
    new Chart("Rates", [
      { name: "Sent", field: "rate", say: rate },
      { name: "Dirtied by the guest", field: "dirty", say: rate },
    ]),
    new Chart("Disks", [{ name: "Disks behind", field: "behind", say: bytes }]),
  ];
  const title = el("h1", { tabindex: "-1" }, "A job");
  const curves = el("section", { hidden: true, "aria-labelledby": "curves" }, el("h2", { id: "curves" }, "Curves"), el("div", { class: "charts" }, charts.map((chart) => chart.element)));
  let story = null;
  let fetched = "";
  let said = "";

  const draw = () => {
    const job = known.jobs.get(id);
    if (!job || collectionOf(job) !== collection) return;
    if (title.textContent !== titleOf(job)) title.textContent = titleOf(job);
    const plan = known.plans.get(id)?.plan ?? story?.plan ?? null;
    const progress = [...(known.progress.get(id)?.values() ?? [])];
    const single = collection !== "drains";
    fill(head, [job, known.me], () => overview(job));
    const alone = single && job.state !== "ended" && progress.length > 0;
    fill(now, [alone || [job.state, progress]], () => (alone ? [bar(progress[0]), el("div", {})] : job.state === "ended" ? [] : underWay(progress)));
    if (alone) {
      setBar(now.firstChild, progress[0]);
      refresh(now.lastChild, figures(progress[0]));
    }
    fill(end, [job.result, job.error, job.exit_code, story?.entry.id], () => outcome(job, story));
    fill(told, [plan?.forecast, job.result?.forecast, job.result], () => forecast(plan?.forecast ?? job.result?.forecast, job.result));
    fill(steps, [plan?.steps, progress.map((each) => each.number), job.state, job.outcome, story?.rows.length], () =>
      single && plan?.steps ? stepList(plan.steps, job, progress[0], story) : [],
    );
    fill(rest, [known.plans.get(id)?.schedule, known.lines.get(id)?.length, job.result], () => (single ? [] : many(job)));
    const points = single ? [...before(story, known.points.get(id)), ...(known.points.get(id) ?? [])] : [];
    for (const chart of charts) chart.update(points);
    curves.hidden = !points.length;
    speak(job, progress[0], single);
    if (single && job.begun !== null && fetched !== job.state) {
      fetched = job.state;
      findStory(job).then((found) => {
        story = found;
        draw();
      }, () => (fetched = ""));
    }
  };

  /** Only what changes seldom is read out: the state and the step, never a figure. */
  const speak = (job, progress, single) => {
    const step = single && job.state !== "ended" && progress ? `, step ${progress.number} of ${progress.steps}: ${progress.sentence}` : "";
    const words = `${titleOf(job)}: ${job.state === "ended" ? (job.outcome === "OK" ? "done" : `ended with ${job.outcome}`) : job.state}${step}`;
    if (said && said !== words) announce(words);
    said = words;
  };

  main.append(title, head, end, now, told, curves, steps, rest);
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

function underWay(progress) {
  if (!progress.length) return el("p", { class: "waiting" }, "Nothing more is told of it yet ...");
  const rows = progress.map((each) => [each.instance, `${each.source} to ${each.target}`, bar(each)]);
  return [el("h2", {}, "Guests under way"), table("Guests under way", ["Guest", "From, to", "How far"], rows)];
}

function outcome(job, story) {
  if (job.state !== "ended") return [];
  const guest = { name: job.about, uuid: job.uuid };
  const reports = story ? el("a", { href: report(story.entry.id), target: "_blank", rel: "noopener" }, "The report (in a new tab)") : null;
  if (!job.error && collectionOf(job) === "drains") return []; // the guests below are its outcome
  const mend = left(job.exit_code) && collectionOf(job) !== "drains" && may("move");
  return el(
    "section",
    { "aria-labelledby": "outcome" },
    el("h2", { id: "outcome" }, "Outcome"),
    job.error ? trouble(job.error) : job.result ? result(job) : null,
    el(
      "div",
      { class: "actions" },
      mend ? button("Clean up ...", () => cleanup(guest), { class: "primary", data: { focus: "clean" } }) : null,
      reports,
    ),
  );
}

/** Where an errand's report is: the service makes it. */
export const report = (errand) => `/v1/history/${encodeURIComponent(errand)}/page`;

function result(job) {
  const it = job.result;
  if (job.what === "cleanup" || it.acts) {
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

function forecast(it, came) {
  if (!it) return [];
  const row = (name, before, after) => [name, before ?? "no end without help", after ?? "-"];
  return el(
    "section",
    { "aria-labelledby": "forecast" },
    el("h2", { id: "forecast" }, "Forecast"),
    forecastSentence(it),
    table("What was told, and what came", ["What", "Told", "Came"], [
      row("Copy", it.seconds === null ? null : seconds(it.seconds), came?.copy_s ? seconds(came.copy_s) : null),
      row("Downtime", it.downtime_s === null ? null : seconds(it.downtime_s), came?.downtime_s === undefined ? null : seconds(came?.downtime_s)),
      row("Passes", it.passes === null ? null : String(it.passes), came?.iterations === undefined ? null : String(came.iterations)),
      row("Policy", it.advised, came?.policy || null),
    ]),
  );
}

function stepList(steps, job, progress, story) {
  const rows = story?.rows ?? [];
  const begun = new Map(rows.filter((row) => row.kind === "step").map((row) => [row.name, row.at_s]));
  const ended = new Map(rows.filter((row) => row.kind === "step end").map((row) => [row.name, row]));
  const current = job.state === "ended" ? null : (progress?.number ?? null);
  return el(
    "section",
    { "aria-labelledby": "steps" },
    el("h2", { id: "steps" }, "Steps"),
    el(
      "ol",
      { class: "steps" },
      steps.map(([name, words], place) => {
        const number = place + 1;
        const last = ended.get(name);
        let how = ["not yet", "calm"];
        if (last?.data.error) how = job.exit_code === ABORTED ? ["aborted", "warn"] : ["failed", "bad"];
        else if (current !== null && number === current) how = ["under way", "warn"];
        else if ((current !== null && number < current) || last || job.outcome === "OK") how = ["done", "good"];
        else if (begun.has(name)) how = ["not finished", "bad"];
        else if (job.state === "ended") how = ["not begun", "calm"];
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
    ),
  );
}

const SAID = {
  begun: (it) => `${it.name} sets out from ${it.source} to ${it.target}`,
  moved: (it) => `${it.name} is on ${it.target} (${it.how}, ${seconds(it.seconds)})`,
  stays: ({ stayed, again }) => [`${stayed.name} stays on ${stayed.source}: ${stayed.finding.sentence} `, again ? "It is tried again." : ""],
  says: (it) => it,
};

function many(job) {
  const planned = known.plans.get(job.id)?.schedule;
  const lines = known.lines.get(job.id) ?? [];
  const it = job.result;
  return [
    it ? summary(it) : null,
    planned ? el("section", { "aria-labelledby": "plan" }, el("h2", { id: "plan" }, "Plan"), schedule(planned)) : null,
    lines.length
      ? el(
          "section",
          { "aria-labelledby": "lines" },
          el("h2", { id: "lines" }, "What happened"),
          el("ol", { class: "lines" }, lines.map((line) => el("li", {}, moment(line.at), " ", SAID[line.kind]?.(line.value) ?? line.kind))),
        )
      : null,
  ];
}

function summary(it) {
  return el(
    "section",
    { "aria-labelledby": "guests" },
    el("h2", { id: "guests" }, "Guests"),
    el("p", {}, `${it.moved.length} moved, ${it.stayed.length} stayed, ${it.not_begun.length} had not begun, ${it.off.length} are off.`),
    it.moved.length
      ? table("Guests that moved", ["Guest", "From", "To", "How", "Took", "Downtime"], it.moved.map((each) => [each.name, each.source, each.target, each.how, seconds(each.seconds), seconds(each.downtime_s)]))
      : null,
    it.stayed.length
      ? it.stayed.map((each) =>
          el("div", { class: `problem ${left(each.exit_code) ? "open" : ""}` }, el("h3", {}, `${each.name} stayed on ${each.source}`), left(each.exit_code) ? el("p", { class: "strong" }, left(each.exit_code)) : null, el("ul", { class: "findings" }, finding(each.finding))),
        )
      : null,
  );
}

/** The journal's errand of this job: it has the curve from its beginning, and how each step went. */
async function findStory(job) {
  const told = job.result?.errand;
  if (told) return get(`/v1/history/${encodeURIComponent(told)}`);
  const { errands } = await get(`/v1/history?most=20&instance=${encodeURIComponent(job.uuid || job.about)}`);
  const its = errands.filter((each) => each.began >= job.begun - APART_S && (job.ended === null || each.began <= job.ended + APART_S));
  const found = its.find((each) => each.tasklet === job.what) ?? its[0];
  return found ? get(`/v1/history/${encodeURIComponent(found.id)}`) : null;
}

/** The points that the journal has and nobody here has heard. */
function before(story, heard) {
  const until = heard?.[0]?.at ?? Infinity;
  return (story?.rows ?? [])
    .filter((row) => (row.kind === "memory" || row.kind === "sync") && row.at_s < until)
    .map((row) => pointOf(row.at_s, row.kind === "memory" ? row.data : null, row.kind === "sync" ? row.data : null));
}

