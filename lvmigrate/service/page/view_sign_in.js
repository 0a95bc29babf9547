// Who asks: a token, which the browser keeps out of every script's sight until it ends or is told to sign out.

import { ask } from "./api.js";
import { el } from "./dom.js";
import { trouble } from "./problem.js";

export function view(main, entered) {
  const said = el("div", { role: "alert" });
  const token = el("input", { id: "token", name: "token", type: "password", required: true, autocomplete: "current-password", spellcheck: "false", "aria-describedby": "token-hint" });
  const send = el("button", { type: "submit", class: "primary" }, "Sign in");
  const sign = async (event) => {
    event.preventDefault();
    send.disabled = true;
    said.replaceChildren();
    try {
      const me = await ask("POST", "/v1/session", { token: token.value.trim() });
      token.value = "";
      entered(me);
    } catch (problem) {
      said.replaceChildren(trouble(problem, { title: "Not signed in", level: "h2" }));
      token.select();
      token.focus();
    } finally {
      send.disabled = false;
    }
  };
  main.append(
    el("h1", { tabindex: "-1" }, "Sign in"),
    el(
      "form",
      { class: "sign-in", on: { submit: sign } },
      el("p", { class: "field" }, el("label", { for: "token" }, "Token"), token),
      el("p", { id: "token-hint", class: "dim" }, "One that ", el("code", {}, "lvmigrate token NAME"), " has made. Who shows a certificate that the service knows needs none."),
      send,
      said,
    ),
  );
  return { title: "Sign in", close: () => {} };
}
