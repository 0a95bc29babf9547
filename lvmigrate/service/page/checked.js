// What an order would do, as its checks tell it: the plan of a move, of a cleanup, or of a drain.

import { el, sentence, table } from "./dom.js";
import { findings } from "./problem.js";
import { bytes, kib, rate, seconds } from "./words.js";

const HOW = {
  live: "while it runs",
  "non-live": "standing still meanwhile",
  "post-copy": "going on at the target before all of its memory is there",
  failover: "shut down, and started there",
};

/** `Checked` as the service answers it. */
export function checked(told) {
  if (told.plan) return plan(told);
  if (told.cleanup) return cleanup(told.cleanup);
  return schedule(told.schedule);
}

function plan({ plan: it, by_hand: byHand }) {
  return [
    el("p", { class: "strong" }, `${it.instance} goes from ${it.source} to ${it.target}, ${HOW[it.mode] ?? it.mode}.`),
    it.target_because ? el("p", {}, sentence(`Why ${it.target}: ${it.target_because}.`)) : null,
    it.shrunk_kib === null ? null : el("p", {}, `For the move it shrinks to ${kib(it.shrunk_kib)}, and gets its memory back afterwards.`),
    it.forecast ? forecastSentence(it.forecast) : null,
    it.warnings.length ? [el("p", {}, "Warnings, which stop nothing:"), findings(it.warnings)] : null,
    el(
      "details",
      {},
      el("summary", {}, `The ${it.steps.length} steps`),
      el("ol", {}, it.steps.map(([name, words]) => el("li", {}, el("b", {}, name), `: ${words}`))),
    ),
    byHand.length ? commands(byHand) : null,
  ];
}

function commands(byHand) {
  return el(
    "details",
    {},
    el("summary", {}, "The same as commands to type"),
    byHand.map((step) => [
      el("h4", {}, step.step),
      step.commands.map((each) => el("pre", { tabindex: "0" }, `${each.node}# ${each.words.join(" ")}`)),
      el("p", {}, sentence(step.then)),
    ]),
  );
}

/** What was told before a move. */
export function forecastSentence(it) {
  const told =
    it.seconds === null
      ? "Without help the copy does not come to its end"
      : `It will take about ${seconds(it.seconds)}, and the guest will stand for about ${seconds(it.downtime_s)}`;
  return el(
    "p",
    {},
    `${told}: it dirties ${rate(it.dirty_rate)} of ${bytes(it.memory_bytes)}, and the link carries ${rate(it.link_rate)} (${it.link_from}). ` +
      `Policy advised: ${it.advised}, because ${it.why}.`,
  );
}

function cleanup(it) {
  return [
    el("p", { class: "strong" }, `What was seen: ${it.ruling.why}.`),
    it.acts.length
      ? [el("p", {}, "What would be done:"), el("ol", {}, it.acts.map((act) => el("li", {}, sentence(act))))]
      : el("p", {}, "Everything is in order: nothing would be done."),
  ];
}

/** Who goes where and when, and who stays. */
export function schedule(it) {
  return [
    el("p", { class: "strong" }, `${it.legs.length} ${it.legs.length === 1 ? "guest goes" : "guests go"}, in about ${seconds(it.seconds)}.`),
    it.legs.length
      ? table(
          "Who goes where",
          ["Guest", "From", "To", "Memory", "Begins", "Takes"],
          it.legs.map(({ departure: each, begin_s: begin }) => [
            each.name,
            each.source,
            each.target,
            kib(each.memory_kib),
            begin ? `after ${seconds(begin)}` : "at once",
            `${seconds(each.seconds)}${each.converges ? "" : " (may not end without help)"}`,
          ]),
        )
      : null,
    it.stays.length ? [el("p", {}, "Who stays, and why:"), it.stays.map((stay) => el("div", {}, el("p", {}, `${stay.name} on ${stay.source}`), findings([stay.finding])))] : null,
  ];
}
