// What acts, each behind a dialog that says first what will happen: checked, then confirmed, then ordered once.

import { ask, get, newKey, order, Problem } from "./api.js";
import { checked } from "./checked.js";
import { announce, button, dialog, el } from "./dom.js";
import { trouble } from "./problem.js";
import { addressOf, answered, asking, collectionOf, may, tell, titleOf } from "./store.js";

const FORECAST_S = 5;

/** Move a guest. */
export async function migrate({ name, uuid, node }, nodes) {
  const policies = await get("/v1/defaults").then((told) => Object.keys(told.policies), () => []);
  const others = nodes.filter((each) => each !== node);
  const fields = {
    target: choice("To", "target", [["", others.length === 1 ? others[0] : "whichever fits best"], ...(others.length === 1 ? [] : others.map((each) => [each, each]))]),
    mode: choice("How", "mode", [
      ["", "as is usual for it"],
      ["live", "live"],
      ["non-live", "non-live"],
      ["post-copy", "post-copy"],
    ], "Live: it runs meanwhile. Non-live: it stands still. Post-copy: it goes on there before all of its memory has come."),
    policy: choice("If the copy does not come to its end", "policy", [["", "as is usual for it"], ...policies.map((each) => [each, each])]),
    forecast: tick("Measure it first, and tell how long it will take", "forecast"),
    bandwidth: numeric("At most, in MiB/s", "bandwidth"),
    allow_failover: tick("If it cannot move while it runs, shut it down and start it there", "allow_failover"),
  };
  const dangers = {
    guard: danger("Without a guard: if the service dies in mid-move, nothing closes what is open and nothing resumes the guest", "guard"),
    fast: danger("Fast switch: the target starts by itself, before lvmigrate has proved that the source is gone", "fast"),
    ignore_ipolicy: danger("Ignore the policy of the target", "ignore_ipolicy"),
    ignore_hvversions: danger("Move to an older libvirt or QEMU", "ignore_hvversions"),
  };
  const words = () => {
    const options = {};
    if (value(fields.mode)) options.mode = value(fields.mode);
    if (value(fields.policy)) options.policy = value(fields.policy);
    if (isOn(fields.forecast)) options.forecast_s = FORECAST_S;
    if (value(fields.bandwidth)) options.bandwidth_mib_s = Number(value(fields.bandwidth));
    if (isOn(fields.allow_failover)) options.allow_failover = true;
    if (may("force")) {
      if (isOn(dangers.guard)) options.guard = false;
      if (isOn(dangers.fast)) options.switch = "fast";
      if (isOn(dangers.ignore_ipolicy)) options.ignore_ipolicy = true;
      if (isOn(dangers.ignore_hvversions)) options.ignore_hvversions = true;
    }
    return { what: "migrate", instance: name, ...(value(fields.target) ? { target: value(fields.target) } : {}), options };
  };
  ordered({
    title: may("move") ? `Move ${name}` : `Check a move of ${name}`,
    collection: "moves",
    words,
    act: (told) => `Move ${name} to ${told.plan.target}`,
    fields: [
      fields.target,
      fields.forecast,
      el("details", {}, el("summary", {}, "More choices"), fields.mode, fields.policy, fields.bandwidth, fields.allow_failover),
      may("force") ? el("details", { class: "danger" }, el("summary", {}, "Give up a safeguard"), Object.values(dangers)) : null,
    ],
  });
}

/** Finish or undo what a move has left. */
export function cleanup({ name, uuid }) {
  const abort = tick("End a copy that is still under way, instead of watching it to its end", "abort");
  ordered({
    title: `Clean up after a move of ${name}`,
    collection: "cleanups",
    words: () => ({ what: "cleanup", instance: name, abort: isOn(abort) }),
    act: (told) => (told.cleanup.acts.length ? `Clean up ${name}` : `Look after ${name} once more`),
    fields: [abort],
  });
}

/** Empty a node. */
export function drain(node) {
  const atOnce = numeric("At most so many at once", "at_once");
  const reason = text("Why, for others to read", "reason");
  ordered({
    title: `Drain ${node}`,
    collection: "drains",
    words: () => ({
      what: "drain",
      nodes: [node],
      reason: value(reason),
      limits: value(atOnce) ? { at_once: Number(value(atOnce)) } : {},
    }),
    act: (told) => `Drain ${node}: move ${guests(told)}, and let none come`,
    fields: [reason, atOnce],
  });
}

/** Open a node again, and bring back who was sent away. */
export function bringBack(node) {
  const every = tick("Every guest that has its disks there, wherever it was before", "every");
  ordered({
    title: `Bring guests back to ${node}`,
    collection: "drains",
    words: () => ({ what: "return", node, every: isOn(every) }),
    act: (told) => `Open ${node}, and move ${guests(told)} there`,
    fields: [every],
  });
}

const guests = ({ schedule: { legs } }) => `${legs.length} ${legs.length === 1 ? "guest" : "guests"}`;

/** End a job, or have a drain begin nothing more. */
export function abort(job) {
  const many = job.what === "drain" || job.what === "return";
  const what = titleOf(job);
  const said = el("div", {});
  const send = (wanted) => async (event) => {
    event.target.disabled = true;
    try {
      const begun = asking();
      answered(await ask("POST", `/v1/${collectionOf(job)}/${encodeURIComponent(job.id)}/${wanted}`), begun);
      tell();
      box.close();
      announce(`${what}: the service was asked to ${wanted} it.`);
    } catch (problem) {
      said.replaceChildren(trouble(problem, { title: "It was not done" }));
      event.target.disabled = false;
    }
  };
  const box = dialog(
    `${what}: abort it?`,
    (close) => [
      el(
        "p",
        {},
        job.state === "queued"
          ? "It waits, and has changed nothing: it ends at once."
          : many
            ? "Each guest under way goes on where it was, whole; one that is past the point of no return arrives."
            : "The guest goes on where it was, whole; past the point of no return it arrives.",
      ),
      many ? el("p", {}, "To stop begins nothing more, and lets those under way arrive.") : null,
      said,
      el(
        "div",
        { class: "actions" },
        button("Keep it going", close),
        many ? button("Stop after those under way", send("stop")) : null,
        button("Abort it", send("abort"), { class: "danger" }),
      ),
    ],
    { alert: true },
  );
}

/** Check, say what will happen, confirm, order. Whoever may only look is shown the first half. */
function ordered({ title, collection, words, act, fields }) {
  const result = el("div", { class: "result", tabindex: "-1", role: "status" });
  const check = el("button", { type: "submit" }, "Check again");
  const go = el("button", { type: "button", class: "primary", disabled: true }, "...");
  let passed = null;
  let turn = 0;

  const forget = () => {
    passed = null;
    turn += 1;
    go.disabled = true;
    go.textContent = "Check it first";
    check.disabled = false;
    result.replaceChildren(el("p", {}, "Not checked yet."));
  };
  const look = async () => {
    forget();
    const mine = turn;
    const body = words();
    check.disabled = true;
    result.replaceChildren(el("p", { class: "waiting" }, "Looking at both nodes ..."));
    try {
      const told = await ask("POST", "/v1/checks", { body });
      if (mine !== turn) return;
      result.replaceChildren(...[el("h3", {}, "What will happen"), checked(told)].flat(Infinity).filter(Boolean));
      passed = { body, key: newKey() };
      go.textContent = act(told);
      go.disabled = false;
    } catch (problem) {
      if (mine !== turn) return;
      go.textContent = "Not as it is";
      result.replaceChildren(trouble(problem, { title: problem.error?.findings ? "It would be refused" : "It could not be checked" }));
    }
    check.disabled = false;
  };
  const send = async () => {
    if (passed === null || go.disabled) return;
    const { body, key } = passed;
    go.disabled = true;
    const before = go.textContent;
    go.textContent = "Ordering ...";
    try {
      const begun = asking();
      const job = await order(collection, body, key);
      answered(job, begun);
      tell();
      box.close();
      location.hash = addressOf(job);
    } catch (problem) {
      result.replaceChildren(trouble(problem, { title: "It was not ordered" }));
      go.textContent = before;
      go.disabled = !(problem instanceof Problem);
      result.focus();
    }
  };
  go.addEventListener("click", send);
  const box = dialog(title, (close) => [
    el(
      "form",
      {
        on: {
          submit: (event) => {
            event.preventDefault();
            look();
          },
          input: forget,
        },
      },
      el("fieldset", {}, el("legend", { class: "unseen" }, title), fields),
      result,
      el("div", { class: "actions" }, button("Close", close), check, may("move") ? go : null),
    ),
  ]);
  look();
}

// ---- fields

/** `hint`: what is too long for the field itself, which a narrow screen would cut off. */
function field(name, label, input, hint = "") {
  const id = `field-${name}`;
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return el("p", { class: "field" }, el("label", { for: id }, label), input, hint ? el("span", { class: "dim", id: `${id}-hint` }, hint) : null);
}

function choice(label, name, options, hint = "") {
  return field(name, label, el("select", { name }, options.map(([key, words]) => el("option", { value: key }, words))), hint);
}

const numeric = (label, name) => field(name, label, el("input", { type: "number", name, min: "1", step: "1", inputmode: "numeric" }));

const text = (label, name) => field(name, label, el("input", { type: "text", name, maxlength: "500", autocomplete: "off" }));

function tick(label, name) {
  const id = `field-${name}`;
  return el("p", { class: "field tick" }, el("input", { type: "checkbox", name, id }), el("label", { for: id }, label));
}

const danger = (label, name) => tick(`${label}.`, name);

const value = (made) => made.querySelector("input, select").value.trim();
const isOn = (made) => made.querySelector("input").checked;

