"""A real guest, moved by a person with a browser from one real libvirt to the other."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lvmigrate.service.settings import Role
from tests.page.support import Visitor, free_port, over_tls, url
from tests.pair.cluster import Description
from tests.pair.guest import BUSY, SLOW_MIB_S
from tests.pair.pair import Pair
from tests.service.support import wait_for


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(cache=tmp_path) as pair:
        yield pair


@pytest.fixture
def service(pair: Pair, tmp_path: Path) -> Iterator[str]:
    """Where a service of the pair is."""
    port = free_port()
    described = dataclasses.replace(Description.of(pair), lease_s=60.0, call_timeout_s=60.0)
    nodes = "".join(f"[nodes.{name}]\n" for name in described.nodes)
    configuration = tmp_path / "cluster.toml"
    configuration.write_text(
        f'{nodes}[journal]\npath = "journal.sqlite"\n[service]\nsocket = ""\n{over_tls(tmp_path, port)}'
    )
    log = tmp_path / "service.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.page.process", str(configuration)],
            stdin=subprocess.PIPE, stdout=said, stderr=said,
        )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write(described.written().encode())
        process.stdin.close()
        wait_for(lambda: b'"serving"' in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield url(port)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def order(page: Page, to: str) -> None:
    """As a person does, with a limit at which the copy does not end, however long somebody looks at it."""
    page.get_by_role("button", name="Move web1", exact=True).click()
    dialog = page.get_by_role("dialog", name="Move web1")
    dialog.get_by_text("More choices").click()
    dialog.get_by_label("At most, in MiB/s").fill(str(SLOW_MIB_S))
    dialog.get_by_role("button", name="Check again").click()
    dialog.get_by_role("button", name=f"Move web1 to {to}").click()
    expect(page.get_by_role("heading", level=1, name="Move of web1")).to_be_visible()
    expect(page.get_by_role("progressbar", name="web1: step memory")).to_be_visible()


def test_a_real_guest_goes_there_and_then_stays(pair: Pair, service: str, visit: Callable[..., Visitor]) -> None:
    guest = pair.guest("web1", on=pair.one, load=BUSY)
    visitor = visit(service)
    visitor.enter(Role.MOVE)
    page = visitor.page
    expect(page.get_by_role("region", name="node1").get_by_role("meter", name="Memory used on node1")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="web1")).to_contain_text("running")
    visitor.picture("pair-nodes")
    order(page, "node2")
    # Curves of what QEMU really sends and the guest really dirties.
    expect(page.locator(".line-0").nth(1)).to_have_attribute("d", re.compile(r"^M.*L.*L"))
    expect(page.get_by_role("img", name=re.compile("Dirtied by the guest: "))).to_be_visible()
    expect(page.locator("main")).to_contain_text(re.compile(r"Pass\d"))
    visitor.picture("pair-moving")
    visitor.accessible()
    pair.hurry(guest, on=pair.one)
    expect(page.get_by_role("region", name="Outcome")).to_contain_text("web1 runs on node2.")
    expect(page.get_by_role("region", name="Outcome")).to_contain_text(re.compile(r"Downtime[\d.]+ m?s"))
    visitor.picture("pair-moved")
    assert pair.running(guest) == ("node2",)
    with page.expect_popup() as popup:
        page.get_by_role("link", name="The report").click()
    expect(popup.value.get_by_role("heading", level=1)).to_have_text("web1: migrate node1 to node2")
    popup.value.close()
    # Back it is aborted: it stays where it is, whole.
    page.get_by_role("link", name="Nodes").click()
    order(page, "node1")
    page.get_by_role("button", name="Abort ...").click()
    page.get_by_role("button", name="Abort it").click()
    expect(page.get_by_role("region", name="Outcome").get_by_role("link", name="ABORTED")).to_be_visible()
    visitor.picture("pair-aborted")
    pair.whole(guest, on=pair.two)
