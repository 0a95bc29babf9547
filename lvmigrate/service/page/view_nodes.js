// Nodes with their guests: who is where, with how much memory, how its disks are, and what can be done.

import { get } from "./api.js";
import { bringBack, cleanup, drain, migrate } from "./dialogs.js";
import { disks } from "./disks.js";
import { badge, button, el, fill, refresh, table } from "./dom.js";
import { trouble } from "./problem.js";
import { bar, setBar } from "./progress.js";
import { addressOf, atEnd, known, look, may, underWay } from "./store.js";
import { clock, kib } from "./words.js";

/** Nodes send no events of their guests: so often they are asked while somebody looks. */
const AGAIN_MS = 15_000;

const STATES = { running: "good", paused: "warn", "shut off": "calm" };

export function view(main) {
  const said = el("p", { class: "dim" }, "Asking every node ...");
  const failed = el("div", {});
  const content = el("div", {}, el("p", { class: "waiting" }, "Asking every node ..."));
  const sections = new Map();
  let nodes = null;
  let doors = null;
  let asking = false;

  const again = async () => {
    if (asking || document.hidden) return;
    asking = true;
    try {
      const [status, open] = await Promise.all([get("/v1/instances"), get("/v1/nodes")]);
      nodes = status.nodes;
      doors = new Map(open.nodes.map((each) => [each.node, each]));
      failed.replaceChildren();
      said.replaceChildren(`As of ${clock(new Date())}. `);
      draw();
    } catch (problem) {
      failed.replaceChildren(trouble(problem, { title: "The nodes could not be asked", level: "h2" }));
      if (nodes === null) content.replaceChildren();
    } finally {
      asking = false;
    }
  };

  const draw = () => {
    if (nodes === null) return;
    const names = nodes.map((node) => node.node);
    fill(content, names, () => {
      sections.clear();
      for (const name of names) sections.set(name, new Section(name));
      return [...sections.values()].map((section) => section.element);
    });
    for (const node of nodes) sections.get(node.node).update(node, doors.get(node.node), names);
    for (const place of content.querySelectorAll("[data-job]")) {
      const progress = known.progress.get(place.dataset.job)?.get(place.dataset.guest);
      if (!progress) place.replaceChildren();
      else if (place.firstChild) setBar(place.firstChild, progress);
      else place.append(bar(progress));
    }
  };

  main.append(
    el("h1", { tabindex: "-1" }, "Nodes and guests"),
    el("p", { class: "toolbar" }, said, button("Look again", again, { data: { focus: "again" } })),
    failed,
    content,
  );
  const timer = setInterval(again, AGAIN_MS);
  const ends = [look(draw), atEnd(again)];
  const seen = () => again();
  document.addEventListener("visibilitychange", seen);
  again();
  return {
    title: "Nodes",
    close: () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", seen);
      for (const end of ends) end();
    },
  };
}

/** One node. What has not changed stays as it is under whoever reads it. */
class Section {
  #head = el("div", { class: "head" });
  #trouble = el("div", {});
  #memory = el("div", { class: "memory" });
  #facts = el("div", {});
  #guests = el("div", {});

  constructor(name) {
    this.element = el("section", { class: "node", "aria-labelledby": `node-${name}` }, this.#head, this.#trouble, this.#memory, this.#facts, this.#guests);
  }

  update(node, door, names) {
    const { host } = node;
    const running = node.guests.filter((each) => each.domain.state !== "shut off").length;
    fill(this.#head, [node.trouble?.code, door, running > 0, known.me], () => [
      el("h2", { id: `node-${node.node}` }, node.node),
      node.trouble ? badge("no answer", "bad") : null,
      door?.closed ? badge(`closed: ${door.closed}`, "warn") : node.trouble ? null : badge("open", "good"),
      may("move") && !node.trouble ? doorButtons(node.node, door, running) : null,
    ]);
    fill(this.#trouble, [node.trouble], () => (node.trouble ? trouble(node.trouble, { title: `What is known of ${node.node} is not all` }) : []));
    fill(this.#memory, [Boolean(host?.memory_kib)], () =>
      host?.memory_kib ? el("meter", { min: "0", "aria-label": `Memory used on ${node.node}` }) : [],
    );
    const meter = this.#memory.firstChild;
    if (meter) {
      meter.max = host.memory_kib;
      meter.value = host.memory_kib - host.free_memory_kib;
    }
    refresh(this.#facts, [
      ["Memory", host ? `${kib(host.free_memory_kib)} free${host.memory_kib ? ` of ${kib(host.memory_kib)}` : ""}` : null],
      ["Guests that run", node.trouble && !node.guests.length ? null : String(running)],
      ["libvirt, QEMU", host ? [host.libvirt_version, host.qemu_version].map((each) => each.join(".")).join(", ") : null],
      ["By command", door?.by_command ? `${door.by_command.state}${door.by_command.reason ? `: ${door.by_command.reason}` : ""}` : null],
    ]);
    const jobs = node.guests.map((each) => underWay(each.domain)).map((job) => job && [job.id, job.state]);
    fill(this.#guests, [node.guests, Boolean(node.trouble), names, jobs, known.me], () =>
      node.guests.length
        ? table(
            `Guests on ${node.node}`,
            ["Guest", "State", "Memory", "Disks", "What can be done"],
            node.guests.map((guest) => row(guest, names)),
          )
        : node.trouble
          ? []
          : el("p", { class: "dim" }, "No guest is defined here."),
    );
  }
}

function doorButtons(node, door, guests) {
  const buttons = [
    guests ? button("Drain ...", () => drain(node), { data: { focus: `drain-${node}` }, "aria-label": `Drain ${node}` }) : null,
    door?.by_command && door.by_command.state !== "online"
      ? button("Bring back ...", () => bringBack(node), { data: { focus: `back-${node}` }, "aria-label": `Bring guests back to ${node}` })
      : null,
  ].filter(Boolean);
  return buttons.length ? el("div", { class: "actions" }, buttons) : null;
}

function row(guest, names) {
  const { domain } = guest;
  const job = underWay(domain);
  return [
    domain.name,
    [
      badge(domain.state, STATES[domain.state] ?? "warn"),
      domain.job === "none" ? null : [" ", badge(`libvirt: ${domain.job}`, "warn")],
      guest.holder ? el("p", { class: "dim" }, `Its token is held by ${guest.holder}.`) : null,
      domain.left_on ? el("p", {}, badge(`started here without the word of ${domain.left_on}`, "warn")) : null,
    ],
    domain.state === "shut off" ? "-" : kib(domain.current_kib ?? domain.memory_kib),
    disks(guest),
    job ? [el("a", { href: addressOf(job) }, `${job.what}, ${job.state}`), el("div", { data: { job: job.id, guest: domain.name } })] : actions(domain, names),
  ];
}

function actions(domain, names) {
  const guest = { name: domain.name, uuid: domain.uuid, node: domain.node };
  const focus = `${domain.node}-${domain.uuid}`;
  const runs = domain.state !== "shut off";
  return el(
    "div",
    { class: "actions" },
    runs
      ? button(may("move") ? "Move ..." : "Check ...", () => migrate(guest, names), {
          data: { focus: `move-${focus}` },
          "aria-label": `${may("move") ? "Move" : "Check a move of"} ${domain.name}`,
        })
      : null,
    may("move")
      ? button("Clean up ...", () => cleanup(guest), { data: { focus: `clean-${focus}` }, "aria-label": `Clean up after a move of ${domain.name}` })
      : null,
  );
}
