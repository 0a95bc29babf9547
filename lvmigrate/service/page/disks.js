// A DRBD resource of a guest, as one node's kernel has it: in a few words where all is well, in full where it is not.

import { badge, el } from "./dom.js";
import { kib, percent } from "./words.js";

/** The resources of a guest on a node. */
export function disks({ resources, domain }) {
  if (resources.length) return el("ul", { class: "plain" }, resources.map((each) => el("li", {}, one(each))));
  return domain.disks.length ? "not on DRBD" : "no disks";
}

function one(resource) {
  const words = [el("b", {}, resource.name), " ", badge(resource.role, resource.role === "Primary" ? "good" : "calm")];
  const own = resource.volumes.filter((volume) => volume.disk !== "UpToDate" || volume.quorum === false);
  for (const volume of own) {
    words.push(" ", badge(`volume ${volume.number}: ${volume.disk}${volume.quorum === false ? ", no quorum" : ""}`, "bad"));
  }
  if (resource.suspended !== "no") words.push(" ", badge(`I/O is suspended (${resource.suspended})`, "bad"));
  if (!resource.connections.length) words.push(" ", badge("no connection", "bad"));
  for (const connection of resource.connections) words.push(" ", link(connection));
  return words;
}

function link(connection) {
  const peer = connection.name === "peer" ? "the peer" : connection.name;
  if (connection.state !== "Connected") return badge(`${peer}: ${connection.state}`, "bad");
  const apart = connection.volumes.filter((volume) => volume.replication !== "Established" || volume.disk !== "UpToDate");
  if (!apart.length) return `in step with ${peer}`;
  return apart.map((volume) => {
    const behind = volume.out_of_sync_kib ? `, ${kib(volume.out_of_sync_kib)} behind` : "";
    const done = volume.done_percent === null ? "" : `, ${percent(volume.done_percent)}`;
    const kind = volume.replication.startsWith("Sync") ? "warn" : "bad";
    return [badge(`${peer}, volume ${volume.number}: ${volume.replication}, ${volume.disk}${behind}${done}`, kind), " "];
  });
}
