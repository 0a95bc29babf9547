// Figures as words, the same as the command's.

import { el } from "./dom.js";

export const MIB = 1024 * 1024;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 1572864 as `1.5 MiB`. */
export function bytes(value) {
  if (value === null || value === undefined) return "";
  let rest = value;
  let unit = 0;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${unit === 0 || rest >= 100 ? Math.round(rest) : rest.toFixed(1)} ${UNITS[unit]}`;
}

export const kib = (value) => (value === null || value === undefined ? "" : bytes(value * 1024));

export const rate = (value) => `${bytes(value)}/s`;

export const percent = (value) => (value === null || value === undefined ? "" : `${Math.floor(value)} %`);

/** 0.25 as `250 ms`, 75 as `1 min 15 s`. */
export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const TODAY = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** A moment, in seconds since 1970, as the reader's clock has it. */
export function moment(value) {
  if (value === null || value === undefined) return "";
  const date = new Date(value * 1000);
  const words = date.toDateString() === new Date().toDateString() ? TODAY.format(date) : CLOCK.format(date);
  return el("time", { datetime: date.toISOString() }, words);
}

export const clock = (date) => TODAY.format(date);
