// What happens, as the service tells it: server-sent events read by fetch, which sees the status of an answer.

import { listen, problemOf } from "./api.js";

/** The service says something every 15 s; one that is this quiet is gone. */
const QUIET_MS = 45_000;
const FIRST_MS = 500;
const MOST_MS = 30_000;

/**
 * One stream, for as long as somebody looks: a browser opens few connections to one service, so a page in the
 * background holds none. It takes up where it was; `up` is called each time that it begins, `down(since)` when it has
 * ended, `event(kind, value)` in between.
 */
export class Stream {
  #path;
  #calls;
  #last = "";
  #wanted = false;
  #control = null;
  #since = null;
  #wake = () => {};

  constructor(path, calls) {
    this.#path = path;
    this.#calls = calls;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#pause() : this.#go()));
    window.addEventListener("online", () => this.#wake());
  }

  start() {
    this.#wanted = true;
    this.#go();
  }

  stop() {
    this.#wanted = false;
    this.#last = ""; // who begins again knows nothing of what was
    this.#pause();
  }

  #pause() {
    this.#control?.abort();
    this.#wake();
  }

  get #may() {
    return this.#wanted && !document.hidden;
  }

  async #go() {
    if (!this.#may || this.#control !== null) return;
    let wait = FIRST_MS;
    while (this.#may) {
      this.#control = new AbortController();
      try {
        await this.#read(() => (wait = FIRST_MS));
      } catch {
        // whatever it was, it is tried again
      }
      if (!this.#may) break;
      this.#since ??= new Date();
      this.#calls.down(this.#since);
      await this.#pass(wait * (0.8 + 0.4 * Math.random()));
      wait = Math.min(2 * wait, MOST_MS);
    }
    this.#control = null;
  }

  #pass(milliseconds) {
    return new Promise((done) => {
      this.#wake = done;
      setTimeout(done, milliseconds);
    });
  }

  async #read(began) {
    const control = this.#control;
    if (!this.#may) return;
    let quiet = setTimeout(() => control.abort(), QUIET_MS);
    try {
      const response = await fetch(this.#path, {
        headers: this.#last ? { "Last-Event-ID": this.#last } : {},
        cache: "no-store",
        signal: control.signal,
      });
      listen(response);
      if (!response.ok) throw await problemOf(response);
      began();
      this.#since = null;
      this.#calls.up();
      const parts = new Parts((id, kind, data) => {
        this.#last = id || this.#last;
        this.#calls.event(kind, JSON.parse(data));
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(quiet);
        quiet = setTimeout(() => control.abort(), QUIET_MS);
        parts.add(value);
      }
    } finally {
      clearTimeout(quiet);
    }
  }
}

/** Lines of a stream, put together to events. */
class Parts {
  #tell;
  #rest = "";
  #fields = {};

  constructor(tell) {
    this.#tell = tell;
  }

  add(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      const { id = "", event = "message", data } = this.#fields;
      this.#fields = {};
      if (data !== undefined) this.#tell(id, event, data);
      return;
    }
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "data" && this.#fields.data !== undefined) this.#fields.data += `\n${value}`;
    else if (name) this.#fields[name] = value;
  }
}

