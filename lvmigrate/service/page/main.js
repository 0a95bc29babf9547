// The page: who asks, which view, whether the service is there, and what a person has to look at.

import { ask, get, heard, Problem } from "./api.js";
import { announce, badge, button, el, fill } from "./dom.js";
import { Stream } from "./events.js";
import { code, left, trouble } from "./problem.js";
import { addressOf, atEnd, forgetAll, happened, held, known, look, reload, tell, titleOf } from "./store.js";
import { clock } from "./words.js";
import { view as viewCode } from "./view_code.js";
import { view as viewHistory } from "./view_history.js";
import { view as viewJob } from "./view_job.js";
import { view as viewJobs } from "./view_jobs.js";
import { view as viewNodes } from "./view_nodes.js";
import { view as viewSignIn } from "./view_sign_in.js";

const VIEWS = { nodes: viewNodes, jobs: viewJobs, history: viewHistory, codes: viewCode };
const AGAIN_MS = 3000;

const main = document.getElementById("main");
const nav = document.querySelector("nav");
let shown = null;
let newer = false;

const stream = new Stream("/v1/events", {
  up: () => {
    known.silent = null;
    tell();
    reload().catch(() => {}); // the stream ends as well then, and is begun again
  },
  down: (since) => {
    known.silent = since;
    tell();
  },
  event: happened,
});

// ---- which view

function show(call, { focus }) {
  shown?.close();
  for (const open of document.querySelectorAll("dialog")) open.close();
  main.replaceChildren();
  shown = call();
  document.title = `${shown.title} - lvmigrate`;
  if (focus) (main.querySelector("h1") ?? main).focus();
}

function route({ focus = true } = {}) {
  if (known.me === null) return;
  const [path, words = ""] = location.hash.slice(1).split("?");
  const parts = path.split("/").filter(Boolean).map(decoded);
  const first = parts[0] in VIEWS ? parts.shift() : "nodes";
  for (const link of nav.querySelectorAll("a")) {
    const here = link.getAttribute("href") === `#/${first}`;
    if (here) link.setAttribute("aria-current", parts.length ? "true" : "page");
    else link.removeAttribute("aria-current");
  }
  const view = first === "jobs" && parts.length === 2 ? viewJob : VIEWS[first];
  if (first === "codes" && !parts.length) parts.push("OK");
  show(() => view(main, parts, new URLSearchParams(words)), { focus });
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

// ---- who asks

function entered(me, { focus = true } = {}) {
  known.me = me;
  nav.hidden = false;
  document.getElementById("who").replaceChildren(
    el("span", {}, me.subject, " ", badge(me.role, "calm")),
    ...(me.signed_in ? [button("Sign out", signOut)] : []),
  );
  stream.start();
  route({ focus });
}

function strangers() {
  const before = known.me !== null;
  stream.stop();
  known.me = null;
  known.silent = null;
  forgetAll();
  nav.hidden = true;
  document.getElementById("who").replaceChildren();
  tell();
  show(() => viewSignIn(main, entered), { focus: before });
}

async function signOut() {
  try {
    await ask("DELETE", "/v1/session");
  } catch (problem) {
    if (problem.status !== 401) return announce(problem.message);
  }
  location.hash = "";
  location.reload();
}

// ---- what is to be seen everywhere

const service = document.getElementById("service");
const heldHere = document.getElementById("held");

function draw() {
  fill(service, [known.silent, newer], () => [
    known.silent
      ? el("p", { class: "banner bad" }, `The service gives no answer since ${clock(known.silent)}. What is shown is as it was then; it is asked again and again.`)
      : null,
    newer ? el("p", { class: "banner" }, "The service is another version now. ", button("Load the page anew", () => location.reload())) : null,
  ]);
  const open = held();
  fill(heldHere, open.map((job) => [job.id, job.exit_code]), () => open.map(one));
}

function one(job) {
  const known_ = job.error?.known ?? job.error?.leftovers ?? [];
  return el(
    "section",
    { class: "banner held" },
    el("h2", {}, `${titleOf(job)}: `, job.outcome === null ? "" : code(job.outcome)),
    el("p", { class: "strong" }, left(job.exit_code)),
    known_.length ? el("ul", {}, known_.slice(0, 4).map((each) => el("li", {}, each))) : null,
    el("p", {}, el("a", { href: addressOf(job) }, `What is known of ${job.about}, and the next command`)),
  );
}

// ---- begin

look(draw);
atEnd((job) => {
  if (!location.hash.includes(job.id)) announce(`${titleOf(job)}: ${job.outcome === "OK" ? "done" : `ended with ${job.outcome}`}`);
});
heard.addEventListener("unknown", () => {
  if (known.me !== null) strangers();
});
heard.addEventListener("version", () => {
  newer = true;
  tell();
});
window.addEventListener("hashchange", () => route());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

async function begin() {
  try {
    entered(await get("/v1/whoami"), { focus: false });
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.status === 401) return strangers();
    main.replaceChildren(trouble(problem, { title: "The service cannot be asked", level: "h1" }));
    setTimeout(begin, AGAIN_MS);
  }
}

begin();
