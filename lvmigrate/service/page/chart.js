// Curves over time: a drawing, a sentence that tells the same, and the figures as a table for who wants them.

import { el, svg, table } from "./dom.js";
import { seconds } from "./words.js";

const WIDTH = 640;
const HEIGHT = 150;
const LEFT = 4;
const RIGHT = 4;
const TOP = 8;
const BOTTOM = 6;
const MOST_ROWS = 60;

let number = 0;

/**
 * One chart with a scale of its own. `lines`: name, field of a point, and how a value is said; the second line is
 * dashed, so that no colour is needed to tell them apart. `whose`: of which guest, where there are several.
 */
export class Chart {
  #lines;
  #paths;
  #most = el("span", { class: "most" });
  #end = el("span", { class: "end" });
  #said = el("figcaption");
  #drawing;
  #figures;
  #points = [];

  constructor(title, lines, { level = "h3", whose = "" } = {}) {
    number += 1;
    const named = `Figures of ${title.toLowerCase()}${whose ? ` of ${whose}` : ""}`;
    this.#figures = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": named });
    this.#lines = lines;
    this.#said.id = `chart-${number}`;
    this.#paths = lines.map((_, place) => svg("path", { class: `line line-${place}`, "vector-effect": "non-scaling-stroke" }));
    this.#drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-labelledby": this.#said.id },
      svg("path", { class: "grid", d: grid(), "vector-effect": "non-scaling-stroke" }),
      this.#paths,
    );
    const details = el("details", { on: { toggle: () => this.#list() } }, el("summary", {}, "The figures"), this.#figures);
    this.element = el(
      "figure",
      { class: "chart", hidden: true },
      el(level, {}, title),
      el("p", { class: "legend", "aria-hidden": "true" }, lines.map((line, place) => el("span", { class: `mark mark-${place}` }, line.name))),
      el("div", { class: "plot" }, el("div", { class: "scale", "aria-hidden": "true" }, this.#most, el("span", {}, "0")), this.#drawing),
      el("p", { class: "axis", "aria-hidden": "true" }, el("span", {}, "0 s"), this.#end),
      this.#said,
      details,
    );
    this.details = details;
  }

  update(points) {
    this.#points = points.filter((point) => this.#lines.some((line) => point[line.field] !== null));
    this.element.hidden = this.#points.length === 0;
    if (this.element.hidden) return;
    const last = this.#points.at(-1);
    const end = Math.max(last.at, 0.001);
    const values = this.#points.flatMap((point) => this.#lines.map((line) => point[line.field] ?? 0));
    const most = Math.max(...values) || 1;
    this.#lines.forEach((line, place) => {
      const way = this.#points
        .filter((point) => point[line.field] !== null)
        .map((point, index) => {
          const x = LEFT + (WIDTH - LEFT - RIGHT) * (point.at / end);
          const y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - point[line.field] / most);
          return `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
        });
      this.#paths[place].setAttribute("d", way.length === 1 ? `${way[0]}h0` : way.join("")); // one look alone is a dot
    });
    this.#most.textContent = this.#lines[0].say(most);
    this.#end.textContent = seconds(end);
    this.#said.textContent = this.#lines.map((line) => this.#sentence(line, end)).join(" ");
    if (this.details.open) this.#list();
  }

  #sentence(line, end) {
    const values = this.#points.map((point) => point[line.field]).filter((value) => value !== null);
    if (!values.length) return "";
    const [first, last] = [values[0], values.at(-1)];
    return `${line.name}: ${line.say(first)} at first, ${line.say(last)} after ${seconds(end)}, at most ${line.say(Math.max(...values))}.`;
  }

  #list() {
    if (!this.details.open) return;
    const stride = Math.ceil(this.#points.length / MOST_ROWS) || 1;
    const kept = this.#points.filter((_, index) => index % stride === 0 || index === this.#points.length - 1);
    const rows = kept.map((point) => [
      seconds(point.at),
      ...this.#lines.map((line) => (point[line.field] === null ? "-" : line.say(point[line.field]))),
    ]);
    this.#figures.replaceChildren(table("Figures", ["After", ...this.#lines.map((line) => line.name)], rows, { className: "figures" }));
  }
}

function grid() {
  const rows = [0, 0.25, 0.5, 0.75, 1].map((share) => TOP + (HEIGHT - TOP - BOTTOM) * share);
  return rows.map((y) => `M${LEFT} ${y}H${WIDTH - RIGHT}`).join("");
}
