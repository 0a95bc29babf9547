// How far a move is: a bar, and the same in words.

import { el } from "./dom.js";
import { bytes, kib, percent, rate, seconds } from "./words.js";

/** The share that the present step tells of itself; `null`: it tells none. */
export function share(progress) {
  if (progress.step === "memory") return progress.memory?.percent ?? null;
  if (progress.step === "sync") return progress.sync?.percent ?? null;
  if (progress.step === "compare") return progress.verify?.percent ?? null;
  return null;
}

/** `5 of 8, memory: 43 %`. */
export function words(progress) {
  const done = share(progress);
  return `${progress.number} of ${progress.steps}, ${progress.step}${done === null ? "" : `: ${percent(done)}`}`;
}

/** A bar with its words. */
export function bar(progress) {
  return setBar(el("p", { class: "bar" }, el("progress", { max: "100" }), el("span")), progress);
}

/** Have a bar tell this. */
export function setBar(made, progress) {
  const [drawn, said] = made.children;
  drawn.setAttribute("aria-label", `${progress.instance}: step ${progress.step}`);
  drawn.value = share(progress) ?? (100 * (progress.number - 1)) / progress.steps;
  if (said.textContent !== words(progress)) said.textContent = words(progress);
  return made;
}

/** What the newest look at a copy of memory, or at disks that are brought in step or compared, has told. */
export function figures({ memory, sync, verify }) {
  const told = [];
  if (memory) {
    const gain = memory.rate - memory.dirty_rate;
    told.push(
      ["Memory to go", `${bytes(memory.remaining)} of ${bytes(memory.total)}`],
      ["Sent", rate(memory.rate)],
      ["Dirtied", rate(memory.dirty_rate)],
      ["Pass", String(memory.iteration)],
      ["Left at this pace", gain > 0 ? seconds(memory.remaining / gain) : "no end at this pace"],
      ["Downtime expected", seconds(memory.expected_downtime_s)],
      ["Slowed down by", memory.throttle_percent ? percent(memory.throttle_percent) : null],
      ["Pages waited for", memory.postcopy_requests ? String(memory.postcopy_requests) : null],
    );
  }
  if (sync) {
    told.push(
      ["Disks behind", kib(sync.out_of_sync_kib)],
      ["In step", percent(sync.percent)],
      ["At", sync.rate_kib_s === null ? null : `${kib(sync.rate_kib_s)}/s`],
      ["Left at this pace", seconds(sync.eta_s)],
      ["Waits for", sync.waiting_for.join("; ")],
      ["Stands still", sync.stall ? `for ${seconds(sync.stalled_s)}: ${sync.stall}` : null],
    );
  }
  if (verify) {
    told.push(["Compared", percent(verify.percent)], ["Differs so far", kib(verify.out_of_sync_kib)], ["Volumes", verify.volumes.join(", ")]);
  }
  return told;
}
