// The guests of a drain or a return: how each one's move is, and, opened, its whole course.

import { cleanup } from "./dialogs.js";
import { Course } from "./course.js";
import { badge, button, el, facts, fill } from "./dom.js";
import { errandsOf, report, storyOf, within } from "./errands.js";
import { finding, findings, left } from "./problem.js";
import { bar, setBar } from "./progress.js";
import { known, may } from "./store.js";
import { moment, seconds } from "./words.js";

const WAITS = "not begun";
const GOES = "under way";
const MOVED = "moved";
const AGAIN = "tried again later";
const STAYS = "stays";
/** It ended, and nothing says how. */
const UNTOLD = "no end is told";

/** How each is said of many, in the order in which they are said. */
const COUNTED = [
  [GOES, "under way"],
  [MOVED, "moved"],
  [STAYS, "stayed"],
  [AGAIN, "to be tried again"],
  [WAITS, "not begun"],
  [UNTOLD, "without an end that is told"],
];
const TASKLETS = new Set(["migrate", "failover", "cleanup"]);

/**
 * What is known of each guest of a job, by UUID: from its plan, then from the journal (of what was before somebody came
 * here), then from what was heard, and in the end from its report.
 */
export function guestsOf(job, schedule) {
  const all = new Map();
  const put = (uuid, facts) => all.set(uuid, { uuid, ...all.get(uuid), ...facts });
  for (const { departure, begin_s: begin } of schedule?.legs ?? []) {
    const { uuid, name, source, target, seconds: takes, converges } = departure;
    put(uuid, { name, source, target, state: WAITS, planned: { begin, takes, converges } });
  }
  for (const stay of schedule?.stays ?? []) put(stay.uuid, { name: stay.name, source: stay.source, state: STAYS, stayed: stay });
  for (const each of [...known.errands].sort((one, other) => one.began - other.began)) {
    if (!all.has(each.uuid) || !TASKLETS.has(each.tasklet) || !within(job, each)) continue;
    if (each.outcome === null) put(each.uuid, { state: GOES });
    else if (each.outcome !== "OK") put(each.uuid, { state: AGAIN });
    else if (each.tasklet !== "cleanup") put(each.uuid, { state: MOVED, target: each.target });
  }
  for (const [uuid, { kind, told, turn }] of known.guests.get(job.id) ?? []) {
    // One that has moved, by the journal, while nothing could be heard, is not under way any more.
    if (kind === "begun" && all.get(uuid)?.state !== MOVED) put(uuid, { ...way(told), state: GOES, stayed: null, turn });
    if (kind === "moved") put(uuid, { ...way(told), state: MOVED, moved: told, stayed: null, turn });
    if (kind === "stays") put(uuid, { ...stays(told.stayed), state: told.again ? AGAIN : STAYS, turn });
  }
  for (const progress of known.progress.get(job.id)?.values() ?? []) {
    const found = [...all.values()].find((each) => each.name === progress.instance);
    const { instance: name, source, target } = progress;
    put(found?.uuid ?? name, { name, source, target, state: GOES, progress });
  }
  if (job.state === "ended") settle(job, all, put);
  return [...all.values()];
}

/** Nothing is under way any more. */
function settle(job, all, put) {
  const over = job.result;
  for (const each of over?.moved ?? []) put(each.uuid, { ...way(each), state: MOVED, moved: each, stayed: null });
  for (const each of over?.stayed ?? []) put(each.uuid, { ...stays(each), state: STAYS });
  for (const name of over?.not_begun ?? []) {
    const found = [...all.values()].find((each) => each.name === name);
    put(found?.uuid ?? name, { name, state: WAITS });
  }
  for (const each of all.values()) if ([GOES, AGAIN].includes(each.state)) put(each.uuid, { state: UNTOLD });
}

const way = ({ name, source, target }) => ({ name, source, target });
const stays = (stayed) => ({ name: stayed.name, source: stayed.source, stayed });

/** `2 moved, 1 not begun`, as far as there are any. */
export function counted(guests, off = 0) {
  const told = COUNTED.map(([state, words]) => [guests.filter((each) => each.state === state).length, words]);
  return [...told, [off, "off"]]
    .filter(([count]) => count)
    .map(([count, words]) => `${count} ${words}`)
    .join(", ");
}

/** One part for each guest, in the order of the plan: whoever reads one keeps it under their eyes. */
export class Guests {
  #said = el("p", {});
  #parts = new Map();
  #list = el("div", { class: "guests" });

  constructor() {
    this.element = el("section", { "aria-labelledby": "guests", hidden: true }, el("h2", { id: "guests" }, "Guests"), this.#said, this.#list);
  }

  update(job, guests) {
    const off = job.result?.off?.length ?? 0;
    const words = `${counted(guests, off) || "None had to go"}.`;
    this.element.hidden = !guests.length && job.state !== "ended";
    if (this.#said.textContent !== words) this.#said.textContent = words;
    for (const guest of guests) {
      const part = this.#parts.get(guest.uuid) ?? new Part(guest.name);
      if (!this.#parts.has(guest.uuid)) {
        this.#parts.set(guest.uuid, part);
        this.#list.append(part.element);
      }
      part.update(job, guest);
    }
    const there = new Set(guests.map((guest) => guest.uuid));
    for (const [uuid, part] of this.#parts) {
      if (there.has(uuid)) continue; // known by its name alone at first
      part.element.remove();
      this.#parts.delete(uuid);
    }
  }
}

/** One guest. Nothing is asked, and nothing drawn, of one that nobody has opened. */
class Part {
  #summary = el("summary");
  #head = el("span", { class: "head" });
  #bar = el("span", { class: "under" });
  #content = el("div", { class: "content" });
  #course = null;
  #job = null;
  #guest = null;
  #points = [];
  #tries = [];
  #story = null;
  #asked = "";

  constructor(name) {
    this.#summary.append(this.#head, this.#bar);
    this.element = el("details", { class: "guest", "aria-label": name, on: { toggle: () => this.#draw() } }, this.#summary, this.#content);
  }

  update(job, guest) {
    const { state, stayed, progress } = guest;
    this.#job = job;
    this.#guest = guest;
    // Live points are dropped when the guest's move has ended; until the journal's have come, the last ones stand.
    this.#points = known.points.get(job.id)?.get(guest.name) ?? this.#points;
    fill(this.#head, [guest.name, guest.source, guest.target, state, stayed?.exit_code, guest.moved, guest.planned], () => [
      el("b", {}, guest.name),
      guest.source ? el("span", {}, guest.target ? `${guest.source} to ${guest.target}` : guest.source) : null,
      badge(state, kindOf(guest)),
      ...short(guest).map((words) => el("span", { class: "dim" }, words)),
    ]);
    fill(this.#bar, Boolean(progress), () => (progress ? bar(progress) : []));
    if (progress) setBar(this.#bar.firstChild, progress);
    // What only a person can decide is not hidden behind a click.
    if (left(stayed?.exit_code) && state === STAYS && !this.element.dataset.shown) {
      this.element.dataset.shown = "yes";
      this.element.open = true;
    }
    this.#draw();
  }

  #draw() {
    if (!this.element.open || this.#guest === null) return;
    const guest = this.#guest;
    if (this.#course === null) {
      this.#course = new Course(guest.name);
      this.#content.append(this.#course.element);
    }
    const over = [MOVED, STAYS, UNTOLD].includes(guest.state) || (this.#job.state === "ended" && guest.state === WAITS);
    const story = this.#story;
    const done = story?.entry.outcome ?? null;
    this.#course.update({
      what: story?.entry.tasklet,
      progress: guest.progress,
      points: this.#points,
      story,
      plan: story?.plan ?? null,
      over: over || (guest.state === AGAIN && done !== null),
      ok: done === "OK",
      aborted: done === "ABORTED",
      result: done === "OK" ? story.result : null,
      error: done !== null && done !== "OK" ? { code: done, sentence: story.entry.sentence, ...story.result } : null,
      planned: forecast(guest),
      besides: this.#besides(),
    });
    this.#ask();
  }

  /** What belongs to its outcome and is not in its own errand: the drain's word, earlier tries, what to do. */
  #besides() {
    const { name, uuid, state, moved, stayed } = this.#guest;
    const done = this.#story?.entry.outcome ?? null;
    const own = stayed && stayed.finding.code !== done ? stayed : null;
    const mend = state === STAYS && left(stayed?.exit_code) && may("move");
    return {
      key: [state, done === null && moved, own, mend, this.#tries.map((each) => [each.id, each.outcome])],
      build: () => [
        own ? el("ul", { class: "findings" }, finding(own.finding)) : null,
        own && left(own.exit_code) ? el("p", { class: "strong" }, left(own.exit_code)) : null,
        state === UNTOLD ? el("p", {}, "The job ended before its end could be told: look at its errand, and at the guest.") : null,
        state === WAITS ? el("p", {}, "It was not begun.") : null,
        done === null && moved
          ? [facts([["How", moved.how], ["In all", seconds(moved.seconds)], ["Downtime", seconds(moved.downtime_s)]]), moved.warnings?.length ? findings(moved.warnings) : null]
          : null,
        this.#tries.length > 1 ? el("p", {}, "It took more than one try; the newest is shown here.") : null,
        el(
          "div",
          { class: "actions" },
          mend ? button("Clean up ...", () => cleanup({ name, uuid }), { data: { focus: `clean-${uuid}` }, "aria-label": `Clean up after a move of ${name}` }) : null,
          this.#tries.map((each, number) =>
            el(
              "a",
              { href: report(each.id), target: "_blank", rel: "noopener", "aria-label": `Report of ${each.tasklet} ${name}${number ? `, try ${this.#tries.length - number}` : ""}, in a new tab` },
              number ? ["Report of the try at ", moment(each.began)] : "The report (in a new tab)",
            ),
          ),
        ),
      ],
    };
  }

  /** The journal is asked anew whenever something is different, a step begins for one: it knows how long each took. */
  #ask() {
    const { uuid, name, state, turn, progress } = this.#guest;
    const now = JSON.stringify([this.#job.state, state, turn, progress?.number]);
    if (this.#asked === now || (state === WAITS && !this.#job.begun)) return;
    this.#asked = now;
    const asked = async () => {
      const tries = (await errandsOf(this.#job, uuid || name)).filter((each) => TASKLETS.has(each.tasklet));
      const story = tries.length ? await storyOf(tries[0].id) : null;
      if (this.#asked !== now) return;
      this.#tries = tries;
      this.#story = story;
      this.#draw();
    };
    asked().catch(() => {}); // at the next change it is asked again; what was heard is shown
  }
}

function kindOf({ state, stayed }) {
  if (state === MOVED) return "good";
  if (state === WAITS) return "calm";
  return state === STAYS && left(stayed?.exit_code) ? "bad" : "warn";
}

/** What is told of it in a few words. */
function short({ state, moved, stayed, planned }) {
  if (moved) return [moved.how, seconds(moved.seconds), `downtime ${seconds(moved.downtime_s)}`];
  if (stayed && state !== GOES) return [stayed.finding.code];
  return state === WAITS && planned?.begin ? [`after about ${seconds(planned.begin)}`] : [];
}

function forecast({ planned, moved }) {
  if (!planned) return null;
  const told = `By the drain's plan it takes about ${seconds(planned.takes)}${planned.converges ? "" : ", and may not end without help"}.`;
  return moved ? `${told} It took ${seconds(moved.seconds)}.` : told;
}
