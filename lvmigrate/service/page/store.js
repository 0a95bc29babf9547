// What the page knows: the jobs with what is newest of each, who asks, and whether the service is there.

import { get } from "./api.js";

/** How often at most those who look are told that something is different. */
const TELL_MS = 200;
/** Of a curve. */
const MOST_POINTS = 2000;
const MOST_LINES = 500;
/** Jobs that have ended, and those that somebody has to look at. */
const MOST_JOBS = 300;
const MOST_OPEN = 20;
/** Exit codes after which a person has to look, as `left_open` of the service has them. */
const PERSON = new Set([5, 8, 9, 70]);
const MOVES = new Set(["migrate", "rehearse", "failover"]);

export const known = {
  me: null,
  jobs: new Map(),
  /** By job: what its checks told. */
  plans: new Map(),
  /** By job, and in it by guest: the newest. */
  progress: new Map(),
  /** By job, and in it by guest: points of its curves. */
  points: new Map(),
  /** By job, and in it by the guest's UUID: what a drain has told of it last, and how many things it has told. */
  guests: new Map(),
  /** By job: what a drain tells besides. */
  lines: new Map(),
  /** The newest errands of the journal. */
  errands: [],
  /** Since when the service has given no answer. */
  silent: null,
};

export const may = (role) => {
  const ladder = ["look", "move", "force"];
  return known.me !== null && ladder.indexOf(known.me.role) >= ladder.indexOf(role);
};

export const collectionOf = (job) =>
  MOVES.has(job.what) ? "moves" : job.what === "cleanup" ? "cleanups" : "drains";

const TITLES = {
  migrate: "Move of",
  rehearse: "Rehearsal of a move of",
  failover: "Failover of",
  cleanup: "Cleanup of",
  drain: "Drain of",
  return: "Return to",
};

/** What a job is, in words. */
export const titleOf = (job) => `${TITLES[job.what] ?? job.what} ${job.about}`;

export const addressOf = (job) => `#/jobs/${collectionOf(job)}/${encodeURIComponent(job.id)}`;

const lookers = new Set();
const enders = new Set();
let telling = null;

/** Call it when something is different; what is returned ends that. */
export function look(call) {
  lookers.add(call);
  return () => lookers.delete(call);
}

/** Call it with every job that has ended. */
export function atEnd(call) {
  enders.add(call);
  return () => enders.delete(call);
}

export function tell() {
  telling ??= setTimeout(() => {
    telling = null;
    for (const call of [...lookers]) call();
  }, TELL_MS);
}

/** Everything anew: what has ended while nobody listened is told by no event. */
export async function reload() {
  const asked = ["moves", "drains", "cleanups"].flatMap((each) => [`/v1/${each}?most=100`, `/v1/${each}?left_open=true&most=${MOST_OPEN}`]);
  const begun = asking();
  const [history, ...lists] = await Promise.all([get("/v1/history?most=200"), ...asked.map(get)]);
  addErrands(history.errands);
  for (const job of lists.flatMap((list) => list.jobs)) answered(job, begun);
  // What was left open long ago may have been mended long ago, and is on none of these lists then.
  const guests = [...new Set(held().slice(0, MOST_OPEN).flatMap(guestsOf).map((guest) => guest.name))];
  await Promise.all(
    guests.map(async (name) => {
      const of = encodeURIComponent(name);
      const [own, cleanups] = await Promise.all([get(`/v1/history?most=20&instance=${of}`), get(`/v1/cleanups?most=20&about=${of}`)]);
      addErrands(own.errands);
      for (const job of cleanups.jobs) answered(job, begun);
    }),
  );
  tell();
}

function addErrands(errands) {
  known.errands = [...new Map([...known.errands, ...errands].map((each) => [each.id, each])).values()];
}

/** How many events of jobs were heard, and after how many each job's last one came. */
let heard = 0;
const last = new Map();

/** What is kept by job. */
const ofJobs = () => [known.jobs, known.plans, known.progress, known.points, known.guests, known.lines];

/** Forget all of it: whoever comes next may be somebody else. */
export function forgetAll() {
  for (const each of ofJobs()) each.clear();
  known.errands = [];
}

/** A page that is open for weeks keeps no more than the newest. */
function forget() {
  const over = newestFirst().filter((job) => job.state === "ended" && !PERSON.has(job.exit_code));
  for (const { id } of over.slice(MOST_JOBS)) {
    for (const each of [...ofJobs(), last]) each.delete(id);
  }
}

/** What a request is begun with, so that its answer is known for older than an event that overtakes it. */
export const asking = () => heard;

/** A job as an answer tells it, to a request that was begun then. */
export function answered(job, begun) {
  if ((last.get(job.id) ?? 0) <= begun) setJob(job);
}

function setJob(job) {
  const before = known.jobs.get(job.id);
  if (before?.state === "ended" && job.state !== "ended") return;
  known.jobs.set(job.id, job);
  if (job.state === "ended") forget();
  if (before && before.state !== "ended" && job.state === "ended") for (const call of [...enders]) call(job);
}

/** One event. */
export function happened(kind, value) {
  switch (kind) {
    case "job":
      last.set(value.id, (heard += 1));
      setJob(value);
      break;
    case "plan":
      known.plans.set(value.job, value.plan);
      break;
    case "progress":
      setProgress(value.job, value.progress);
      break;
    default: {
      const lines = known.lines.get(value.job) ?? [];
      lines.push({ kind, value: value[kind], at: Date.now() / 1000 });
      known.lines.set(value.job, lines.slice(-MOST_LINES));
      setGuest(value.job, kind, value[kind]);
    }
  }
  tell();
}

/** A drain's word on one of its guests. Of one that is not under way any more the journal has the curves. */
function setGuest(job, kind, told) {
  const of = kind === "stays" ? told.stayed : told;
  if (!of.uuid) return;
  const guests = known.guests.get(job) ?? new Map();
  guests.set(of.uuid, { kind, told, turn: (guests.get(of.uuid)?.turn ?? 0) + 1 });
  known.guests.set(job, guests);
  if (kind === "begun") return;
  known.progress.get(job)?.delete(of.name);
  known.points.get(job)?.delete(of.name);
}

function setProgress(job, progress) {
  const guests = known.progress.get(job) ?? new Map();
  guests.set(progress.instance, progress);
  known.progress.set(job, guests);
  if (progress.memory === null && progress.sync === null) return;
  const all = known.points.get(job) ?? new Map();
  known.points.set(job, all);
  let points = all.get(progress.instance) ?? [];
  if (points.at(-1)?.at === progress.elapsed_s) return;
  if (points.at(-1)?.at > progress.elapsed_s) points = []; // another try, which counts from its own beginning
  all.set(progress.instance, points);
  points.push(pointOf(progress.elapsed_s, progress.memory, progress.sync));
  // Every other one of the older half goes: the curve keeps its shape, and the page its size.
  if (points.length > MOST_POINTS) points.splice(0, points.length, ...points.filter((_, n) => n > MOST_POINTS / 2 || n % 2));
}

/** A point of the curves. */
export function pointOf(at, memory, sync) {
  return {
    at,
    remaining: memory?.remaining ?? null,
    rate: memory?.rate ?? null,
    dirty: memory?.dirty_rate ?? null,
    behind: sync ? sync.out_of_sync_kib * 1024 : null,
  };
}

export const newestFirst = () => [...known.jobs.values()].sort((one, other) => other.asked - one.asked);

export const underWay = (about) =>
  newestFirst().find((job) => job.state !== "ended" && (job.about === about.name || job.uuid === about.uuid));

/** Jobs whose end a person has to look at, until something that came later has ended well for each of their guests. */
export function held() {
  const jobs = newestFirst();
  return jobs.filter((job) => PERSON.has(job.exit_code) && guestsOf(job).some((guest) => !mended(guest, job, jobs)));
}

function guestsOf(job) {
  if (MOVES.has(job.what) || job.what === "cleanup") return [{ name: job.about, uuid: job.uuid }];
  const stayed = (job.result?.stayed ?? []).filter((each) => PERSON.has(each.exit_code));
  return stayed.length ? stayed : [{ name: job.about, uuid: "" }];
}

function mended(guest, job, jobs) {
  const same = (name, uuid) => name === guest.name || (guest.uuid !== "" && uuid === guest.uuid);
  return (
    jobs.some((later) => later.exit_code === 0 && later.asked > job.asked && later.what !== "rehearse" && same(later.about, later.uuid)) ||
    known.errands.some((later) => later.outcome === "OK" && later.began > job.ended && same(later.instance, later.uuid))
  );
}
