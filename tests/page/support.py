"""A service over TLS, and a browser in front of it: Debian's chromium, driven by Playwright without one of its own."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trustme
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, expect

from lvmigrate.service.access import new_token
from lvmigrate.service.settings import Role
from tests.service.support import House, house

#: This machine is shared: what is there within a second on an idle one may take long.
PATIENCE_MS: Final = 60_000
PHONE: Final = {"width": 320, "height": 640}
#: With a finger, and a page that is laid out as on one.
HAND: Final[dict[str, Any]] = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
DESK: Final = {"width": 1280, "height": 900}
#: Where pictures go for whoever wants to look at them; empty: nowhere.
PICTURES: Final = os.environ.get("LVMIGRATE_PICTURES", "")
_AXE: Final = Axe()
expect.set_options(timeout=PATIENCE_MS)
#: What is asked of the page beside WCAG 2.2 A and AA.
_TAGS: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
#: What reaches beyond the window, or beyond the dialog that it is in. What scrolls by itself may have more in it, and
#: what is there for a screen reader only is not laid out.
_WIDE: Final = """() => {
    const found = [];
    const parts = document.querySelectorAll("dialog[open]");
    for (const part of parts.length ? parts : [document.documentElement]) {
        const more = part.scrollWidth - part.clientWidth;
        if (more > 0) found.push(`${part.localName} has ${more} pixels more than it shows`);
        const edge = part.getBoundingClientRect().left + part.clientLeft + part.clientWidth;
        for (const each of part.querySelectorAll("*")) {
            if (each.closest("pre, .scroll > *, .unseen, .skip, thead, svg > *")) continue;
            if (!each.checkVisibility()) continue;
            const over = each.getBoundingClientRect().right - edge;
            if (over > 1) found.push(`${each.localName}#${each.id}.${each.className} ends ${over} pixels beyond`);
        }
    }
    return found;
}"""
#: What a browser says of an answer that is no success, which is what some tests are about.
_ANSWERS: Final = ("Failed to load resource",)

#: By role: a token, and its hash.
TOKENS: Final = {role: new_token() for role in Role}


def start(playwright: Playwright) -> Browser:
    """The browser. As root it has no sandbox."""
    found = shutil.which("chromium")
    assert found is not None, "there is no chromium; install it with: vagrant/lab setup"
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=found, args=alone)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
        return number


def over_tls(directory: Path, port: int) -> str:
    """Certificates in that directory, and what the configuration says of them: a token for each role, one ``ci``."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    served = ca.issue_cert("127.0.0.1", "localhost")
    served.cert_chain_pems[0].write_to_path(str(directory / "service.pem"))
    served.private_key_pem.write_to_path(str(directory / "service.key"))
    client = ca.issue_cert("ci.example", common_name="ci")
    client.cert_chain_pems[0].write_to_path(str(directory / "ci.pem"))
    client.private_key_pem.write_to_path(str(directory / "ci.key"))
    tokens = "".join(
        f'[service.tokens.with-{role.value}]\nsha256 = "{digest}"\nrole = "{role.value}"\n'
        for role, (_, digest) in TOKENS.items()
    )
    return f"""
listen = "127.0.0.1:{port}"
certificate = "service.pem"
key = "service.key"
client_ca = "ca.pem"
certificates = {{ ci = "move" }}
{tokens}"""


class Served:
    """A service in a simulated world, as a browser finds it."""

    def __init__(self, here: House, port: int) -> None:
        self.house = here
        self.url = url(port)


def url(port: int) -> str:
    return f"https://127.0.0.1:{port}"


@contextmanager
def served(directory: Path, **world: Any) -> Iterator[Served]:
    """Started, and with two nodes that have nothing on them."""
    port = free_port()
    with house(directory, over_tls(directory, port), **world) as here:
        here.start()
        yield Served(here, port)


@contextmanager
def forwarded(unix: Path) -> Iterator[int]:
    """A port of this machine that leads to a unix socket, as ``ssh -L`` makes one."""
    open_ones: list[socket.socket] = []

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def let_in() -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(str(unix))
                open_ones.extend((here, there))
                for way in ((here, there), (there, here)):
                    threads.append(threading.Thread(target=pass_on, args=way, daemon=True))
                    threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        door = threading.Thread(target=let_in, daemon=True)
        door.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            door.join(10)
            for each in open_ones:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
            for each in open_ones:
                each.close()


class Visitor:
    """Somebody with a browser of their own."""

    def __init__(self, browser: Browser, url: str, **how: Any) -> None:
        self.context: BrowserContext = browser.new_context(
            base_url=url, ignore_https_errors=True, viewport=how.pop("viewport", DESK), **how
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        #: What the page has done wrong, by the browser's word: an error of a script, something against its policy.
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(f"{error}\n{error.stack}"))
        self.page.on("console", self._heard)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_ANSWERS):
            self.complaints.append(message.text)

    def enter(self, role: Role, at: str = "/") -> None:
        """Sign in, as a person does."""
        self.page.goto(at)
        self.page.get_by_label("Token").fill(TOKENS[role][0])
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("navigation", name="Main")).to_be_visible()

    def picture(self, name: str) -> None:
        """For whoever wants to look, in both schemes of colours."""
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            whole = self.page.locator("dialog[open]").count() == 0  # what is under a dialog is not looked at
            for scheme in ("dark", "light"):
                self.page.emulate_media(color_scheme=scheme)
                self.page.screenshot(path=f"{PICTURES}/{name}-{scheme}.png", full_page=whole)

    def accessible(self) -> None:
        """Nothing is found against it, in both schemes of colours; nothing is wider than the window, or its dialog."""
        for scheme in ("dark", "light"):
            self.page.emulate_media(color_scheme=scheme)
            found = _AXE.run(self.page, options={"runOnly": {"type": "tag", "values": _TAGS}})
            assert found.violations_count == 0, f"{scheme}: {found.generate_report()}"
        wide = self.page.evaluate(_WIDE)
        assert wide == [], "\n".join(wide)

    def close(self) -> None:
        """And see that the page did nothing wrong."""
        self.context.close()
        assert self.complaints == []
