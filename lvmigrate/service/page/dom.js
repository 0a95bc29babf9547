// Elements. Every text from outside goes in as a text node: nothing here, or anywhere in the page, makes markup of one.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Of `properties`, `on` has listeners, `data` data attributes; the rest are attributes (true: empty). */
export function el(name, properties = {}, ...children) {
  return made(document.createElement(name), properties, children);
}

/** The same of a drawing. */
export function svg(name, properties = {}, ...children) {
  return made(document.createElementNS(SVG, name), properties, children);
}

function made(element, { on = {}, data = {}, ...attributes }, children) {
  for (const [event, act] of Object.entries(on)) element.addEventListener(event, act);
  for (const [key, value] of Object.entries(data)) element.dataset[key] = value;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const filled = new WeakMap();

/**
 * What `build` makes, in `container`, made anew only when `key` has changed. Who was on something there stays on it:
 * `data: {focus: ...}` names what is the same before and after.
 */
export function fill(container, key, build) {
  const words = JSON.stringify(key);
  if (filled.get(container) === words) return;
  filled.set(container, words);
  const here = container.contains(document.activeElement) ? document.activeElement : null;
  const opened = new Set([...container.querySelectorAll("details[open][data-focus]")].map((each) => each.dataset.focus));
  container.replaceChildren(...[build()].flat(Infinity).filter(Boolean));
  for (const each of container.querySelectorAll("details[data-focus]")) each.open ||= opened.has(each.dataset.focus);
  if (here?.dataset.focus) {
    container.querySelector(`[data-focus="${CSS.escape(here.dataset.focus)}"]`)?.focus({ preventScroll: true });
  }
}

/**
 * A table. On a narrow screen each row stands by itself, with the columns' names in it; the roles are said as well,
 * because a browser forgets them of a table that is laid out otherwise.
 */
export function table(caption, columns, rows, { className = "" } = {}) {
  return el(
    "table",
    { class: `rows ${className}`, role: "table" },
    el("caption", {}, caption),
    el(
      "thead",
      { role: "rowgroup" },
      el("tr", { role: "row" }, columns.map((name) => el("th", { scope: "col", role: "columnheader" }, name))),
    ),
    el(
      "tbody",
      { role: "rowgroup" },
      rows.map((cells) =>
        el(
          "tr",
          { role: "row" },
          cells.map((cell, number) =>
            number === 0
              ? el("th", { scope: "row", role: "rowheader", data: { label: columns[0] } }, cell)
              : el("td", { role: "cell", data: { label: columns[number] } }, cell),
          ),
        ),
      ),
    ),
  );
}

/** Pairs of a name and what it is; those that are empty are left out. */
export function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** The same in `box`, where the words alone are new when the names are those that stand there already. */
export function refresh(box, pairs) {
  const there = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const names = JSON.stringify(there.map(([name]) => name));
  if (filled.get(box) !== names) {
    filled.set(box, names);
    box.replaceChildren(facts(there));
    return;
  }
  const places = box.querySelectorAll("dd");
  there.forEach(([, value], number) => {
    if (places[number].textContent !== value) places[number].textContent = value;
  });
}

/** A word for a state, never told by its colour alone. */
export function badge(words, kind = "calm") {
  return el("span", { class: `badge ${kind}` }, words);
}

export function button(words, act, properties = {}) {
  return el("button", { type: "button", on: { click: act }, ...properties }, words);
}

/** A sentence with what stands between backticks as something to type. */
export function sentence(text) {
  return String(text)
    .split("`")
    .map((part, number) => (number % 2 ? el("code", {}, part) : part));
}

/** Have it read out, once. */
export function announce(text) {
  const region = document.getElementById("announce");
  region.replaceChildren(text);
}

/**
 * A modal dialog: Escape closes it, the focus stays in it, and goes back to where it came from. `build(close)` makes
 * what is in it.
 */
export function dialog(title, build, { alert = false } = {}) {
  const heading = el("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const box = el("dialog", { "aria-labelledby": "dialog-title", role: alert ? "alertdialog" : null }, heading);
  const close = () => box.close();
  box.addEventListener("close", () => box.remove());
  box.append(...[build(close)].flat(Infinity).filter(Boolean));
  document.body.append(box);
  box.showModal();
  heading.focus();
  return box;
}
