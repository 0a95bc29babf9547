// Asking the service: every answer is a value, or a `Problem` with the code, the sentence and the hint of the command.

const PATIENCE_MS = 180_000;
const AGAIN_MS = 1000;
const TRIES = 5;

/** What went wrong, as the service tells it below `error`: code, sentence, hint, and the facts of its kind. */
export class Problem extends Error {
  constructor(error, status) {
    super(error.sentence);
    this.error = error;
    this.status = status;
  }
}

/** Told of what concerns the whole page: `unknown` (nobody is signed in), `version` (of the service). */
export const heard = new EventTarget();

let version = null;

/** The answer to one request. */
export async function ask(method, path, { body, key, token } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } catch {
    throw unreachable();
  }
  listen(response);
  if (response.ok) return response.json();
  throw await problemOf(response);
}

export const get = (path) => ask("GET", path);

/** An answer that was none. */
export async function problemOf(response) {
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // what stands between here and the service has answered in its place
  }
  if (!told?.code) {
    told = {
      code: "SERVICE_DIFFERS",
      sentence: `What answers with status ${response.status} is no lvmigrate service that this page understands.`,
      hint: "Load the page again; see what stands between here and the service.",
      detail: "",
    };
  }
  if (response.status === 401) heard.dispatchEvent(new Event("unknown"));
  return new Problem(told, response.status);
}

/** Note which service it was that answered. */
export function listen(response) {
  const told = response.headers.get("Lvmigrate-Version");
  if (told === null) return;
  if (version !== null && told !== version) heard.dispatchEvent(new Event("version"));
  version = told;
}

export function unreachable() {
  return new Problem(
    {
      code: "SERVICE_UNREACHABLE",
      sentence: "The service gives no answer.",
      hint: "See that it runs, and that the way to it is open. What it had under way goes on, or is taken up when it is back.",
      detail: "",
    },
    0,
  );
}

/** A key for one click: however often it is sent, it is one job. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");
}

/** Give an order, once, however often it has to be said; the job. */
export async function order(collection, body, key) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask("POST", `/v1/${collection}`, { body, key });
    } catch (problem) {
      if (!(problem instanceof Problem) || problem.status !== 0 || tries === TRIES) throw problem;
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }
}
