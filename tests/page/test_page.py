"""What a person sees and does: two nodes in memory, a real service over TLS, a real browser."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from lvmigrate.errors import Code, ExitCode, GuestLost, LeftBehind, LvmigrateError, OutcomeUnknown, Refused
from lvmigrate.explanation import EXPLANATIONS
from lvmigrate.jsonable import error_object
from lvmigrate.service.job import Job, State
from lvmigrate.service.ledger import Ledger
from lvmigrate.service.messages import JobList
from lvmigrate.service.orders import Priority
from lvmigrate.service.settings import Role
from lvmigrate.simulator import World
from lvmigrate.simulator.host import Phase
from lvmigrate.simulator.truth import DRBD
from tests.page.support import HAND, PHONE, TOKENS, Served, Visitor, forwarded, served
from tests.service.support import user, wait_for

Visit = Callable[..., Visitor]
#: What a browser would make an element of.
MARKUP = "<img src=x onerror=alert(1)>"
#: A curve that has got on; one that begins in the first half of 640, where whoever is shown it came later than that.
CURVE = re.compile(r"^M.*L.*L.*L")
FROM_ITS_BEGINNING = re.compile(r"^M[12]?\d?\d\.\d .*L.*L.*L")
#: Long enough to be looked at while it is under way.
SLOW_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("page")) as place:
        yield place


def in_world(place: Served, act: Callable[[World], None]) -> None:
    place.house.stage.do(lambda: act(place.house.stage.world))


def hurry(world: World) -> None:
    """Let every copy come to its end, whoever has not begun in a few seconds."""
    for guest in world.guests.values():
        guest.copy_s = 3.0
    for one in world.migrations:
        moving: Any = one
        if moving.phase is Phase.TRANSFER:
            moving._stop_timer()
            moving._enter(Phase.TRANSFER, 0.5, moving._suspend)


def jobs_of(place: Served, name: str) -> list[Job]:
    with place.house.client() as client:
        return [job for job in client.get("/v1/moves", JobList).jobs if job.about == name]


def row_of(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


def move(page: Page, name: str, to: str = "node2") -> None:
    """Order it, and come to the job's page."""
    page.get_by_role("button", name=f"Move {name}", exact=True).click()
    page.get_by_role("button", name=f"Move {name} to {to}").click()
    expect(page.get_by_role("heading", level=1, name=f"Move of {name}")).to_be_visible()


#: What is focused is called, as far as the tests need it.
_FOCUSED = """() => {
    const on = document.activeElement;
    return on.ariaLabel ?? on.labels?.[0]?.textContent ?? on.textContent;
}"""


def focused(page: Page) -> str:
    return str(page.evaluate(_FOCUSED))


def tab_to(page: Page, name: str, most: int = 200) -> None:
    """By the tabulator alone."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if focused(page).strip() == name:
            return
    pytest.fail(f"{name} is not reached")


# ---- who


def test_signing_in_and_out(place: Served, visit: Visit) -> None:
    visitor = visit(place)
    page = visitor.page
    page.goto("/")
    expect(page).to_have_title("Sign in - lvmigrate")
    visitor.accessible()
    page.get_by_label("Token").fill("lvm_wrong")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert").filter(has_text="Not signed in")
    expect(alert).to_contain_text("UNAUTHENTICATED")
    expect(alert).to_contain_text("Give a token that is valid")
    visitor.picture("sign-in")
    page.get_by_label("Token").fill(TOKENS[Role.LOOK][0])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Nodes and guests")).to_be_focused()
    expect(page.locator("#who")).to_contain_text("token:with-look look")
    # It is the browser that keeps it, and no script can read it.
    kept = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length, document.body.innerHTML]")
    assert kept[:3] == ["", 0, 0]
    assert TOKENS[Role.LOOK][0] not in kept[3]
    page.reload()
    expect(page.get_by_role("heading", level=1, name="Nodes and guests")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()
    assert visitor.context.cookies() == []


def test_who_shows_a_certificate_needs_no_token(place: Served, visit: Visit) -> None:
    files = place.house.directory
    shown = {"origin": place.url, "certPath": files / "ci.pem", "keyPath": files / "ci.key"}
    page = visit(place, client_certificates=[shown]).page
    page.goto("/")
    expect(page.locator("#who")).to_contain_text("certificate:ci move")
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)


def test_who_comes_by_ssh_is_who_the_socket_knows(place: Served, visit: Visit) -> None:
    place.house.guest("ssh1")
    with forwarded(place.house.socket) as port:
        page = visit(f"http://localhost:{port}").page
        page.goto("/")
        expect(page.locator("#who")).to_contain_text(f"{user()} force")
        expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
        page.get_by_role("button", name="Move ssh1").click()
        dialog = page.get_by_role("dialog", name="Move ssh1")
        dialog.get_by_text("Give up a safeguard").click()
        dialog.get_by_label("Without a guard").check()
        dialog.get_by_role("button", name="Check again").click()
        dialog.get_by_role("button", name="Move ssh1 to node2").click()
        expect(page.get_by_role("region", name="Outcome")).to_contain_text("ssh1 runs on node2.")
    assert jobs_of(place, "ssh1")[0].order["options"] == {"guard": False}


def test_who_may_only_look_finds_nothing_that_acts(place: Served, visit: Visit) -> None:
    guest = place.house.guest("seen1", copy_s=SLOW_S)
    visitor = visit(place)
    visitor.enter(Role.LOOK)
    page = visitor.page
    expect(row_of(page, "seen1")).to_be_visible()
    acts = re.compile("Move|Clean up|Drain|Bring|Abort|Stop")
    expect(page.get_by_role("button", name=acts)).to_have_count(0)
    page.get_by_role("button", name="Check a move of seen1").click()
    dialog = page.get_by_role("dialog", name="Check a move of seen1")
    expect(dialog).to_contain_text("seen1 goes from node1 to node2, while it runs.")
    expect(dialog.get_by_role("button")).to_have_text(["Close", "Check again"])
    with place.house.client() as client:
        job = client.send("POST", "/v1/moves", {"what": "migrate", "instance": "seen1"}, Job)
    page.goto(f"/#/jobs/moves/{job.id}")
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("button", name=acts)).to_have_count(0)
    # And were there a button, the service would refuse.
    status = page.evaluate(
        "path => fetch(path, {method: 'POST'}).then(answer => answer.status)", f"/v1/moves/{job.id}/abort"
    )
    assert status == 403
    with place.house.client() as client:
        client.send("POST", f"/v1/moves/{job.id}/abort", None, Job)
    wait_for(lambda: jobs_of(place, "seen1")[0].over)
    assert place.house.running(guest) == ["node1"]


# ---- nodes


@pytest.mark.parametrize("viewport", [None, PHONE], ids=["desk", "phone"])
def test_nodes_tell_guests_memory_and_disks(place: Served, visit: Visit, viewport: Any) -> None:
    name = "desk1" if viewport is None else "phone1"
    place.house.guest(name)
    visitor = visit(place, **({} if viewport is None else {"viewport": viewport}))
    visitor.enter(Role.MOVE)
    page = visitor.page
    node1 = page.get_by_role("region", name="node1")
    expect(node1).to_contain_text("4.0 GiB free")
    expect(node1.get_by_role("table", name="Guests on node1")).to_be_visible()
    row = row_of(page, name)
    for words in ("running", "1.0 GiB", f"{name} Primary in step with node2"):
        expect(row).to_contain_text(words)
    visitor.accessible()
    visitor.picture(f"nodes-{name}")


def test_disks_that_are_not_in_step_and_a_node_that_is_silent(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        own.house.guest("web1")
        in_world(own, lambda world: world.cut(DRBD, "node1", "node2", 3600.0))
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        expect(row_of(page, "web1")).to_contain_text("node2: Connecting")
        in_world(own, lambda world: world.power_cut("node2", 3600.0))
        page.get_by_role("button", name="Look again").click()
        node2 = page.get_by_role("region", name="node2")
        expect(node2).to_contain_text("no answer")
        expect(node2.get_by_role("link", name="NODE_UNREACHABLE")).to_be_visible()
        expect(node2).to_contain_text("Next:")
        expect(row_of(page, "web1")).to_be_visible()
        visitor.accessible()
        visitor.picture("node-silent")


def test_what_somebody_calls_a_guest_is_a_text(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        lost = GuestLost(f"{MARKUP} runs nowhere.", hint=f"Start {MARKUP}: `virsh start {MARKUP}`.", detail=MARKUP)
        ended(own, MARKUP, lost)
        own.house.guest("web1")
        visitor = visit(own)
        visitor.enter(Role.FORCE)
        page = visitor.page
        expect(page.get_by_role("alert")).to_contain_text(f"Move of {MARKUP}")
        page.get_by_role("link", name="What is known of").click()
        expect(page.get_by_role("heading", level=1, name=f"Move of {MARKUP}")).to_be_visible()
        expect(page.locator(".problem code")).to_have_text(f"virsh start {MARKUP}")
        for place in ("#/jobs", f"#/history?guest={MARKUP}", f"#/codes/{MARKUP}", f"#/jobs/moves/{MARKUP}"):
            page.goto(f"/{place}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator("main")).to_contain_text("Next:")
        assert page.locator("img[src=x]").count() == 0


# ---- a move


def test_a_move_by_the_keyboard_alone(place: Served, visit: Visit) -> None:
    guest = place.house.guest("keys1", copy_s=2.0)
    visitor = visit(place, reduced_motion="reduce")
    visitor.enter(Role.MOVE)
    page = visitor.page
    expect(row_of(page, "keys1")).to_be_visible()
    page.reload()
    expect(row_of(page, "keys1")).to_be_visible()
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    tab_to(page, "Move keys1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("heading", name="Move keys1")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert focused(page) == "Move keys1"
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Move keys1 to node2")).to_be_enabled()
    assert page.evaluate("document.getAnimations().length") == 0
    tab_to(page, "Move keys1 to node2")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Move of keys1")).to_be_focused()
    expect(page.get_by_role("heading", name="Outcome")).to_be_visible()
    assert place.house.running(guest) == ["node2"]


def test_an_abort_by_the_keyboard_alone(place: Served, visit: Visit) -> None:
    guest = place.house.guest("keys2", copy_s=SLOW_S)
    visitor = visit(place)
    visitor.enter(Role.MOVE)
    page = visitor.page
    tab_to(page, "Move keys2")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Move keys2 to node2")).to_be_enabled()
    tab_to(page, "Move keys2 to node2")
    page.keyboard.press("Enter")
    expect(page.get_by_role("progressbar", name="keys2: step memory")).to_be_visible()
    tab_to(page, "Abort ...")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("alertdialog", name="Move of keys2: abort it?")
    expect(dialog.get_by_role("heading", name="Move of keys2: abort it?")).to_be_focused()
    # It can be left by the key that leaves dialogs, and the focus is where it was; then it is meant.
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert focused(page) == "Abort ..."
    page.keyboard.press("Space")
    expect(dialog).to_be_visible()
    tab_to(page, "Abort it")
    page.keyboard.press("Space")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("region", name="Outcome").get_by_role("link", name="ABORTED")).to_be_visible()
    tab_to(page, "ABORTED")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="ABORTED")).to_be_focused()
    tab_to(page, "Back")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Move of keys2")).to_be_focused()
    assert place.house.running(guest) == ["node1"]


def test_a_cleanup_by_the_keyboard_alone(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        guest = own.house.guest("web1")
        ended(own, "web1", LEFT)
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        expect(page.get_by_role("alert")).to_contain_text("a person has to look")
        tab_to(page, "What is known of web1, and the next command")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1, name="Move of web1")).to_be_focused()
        tab_to(page, "Clean up ...")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Clean up after a move of web1")
        expect(dialog.get_by_role("heading", name="Clean up after a move of web1")).to_be_focused()
        tab_to(page, "End a copy that is still under way, instead of watching it to its end")
        page.keyboard.press("Space")
        expect(dialog.get_by_role("checkbox")).to_be_checked()
        expect(dialog).to_contain_text("Not checked yet.")
        tab_to(page, "Check again")
        page.keyboard.press("Enter")
        go = dialog.get_by_role("button", name=re.compile("Clean up web1|Look after web1"))
        expect(go).to_be_enabled()
        tab_to(page, go.text_content() or "")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1, name="Cleanup of web1")).to_be_focused()
        expect(page.get_by_role("region", name="Outcome")).to_contain_text("web1 is on node1, and runs.")
        expect(page.get_by_role("alert")).to_be_empty()
        assert own.house.running(guest) == ["node1"]


def test_the_history_by_the_keyboard_alone(place: Served, visit: Visit) -> None:
    for name in ("keys3", "keys4"):
        place.house.guest(name)
        with place.house.remote() as remote:
            remote.migrate(name)
    visitor = visit(place)
    visitor.enter(Role.LOOK)
    page = visitor.page
    tab_to(page, "History")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="History")).to_be_focused()
    expect(page.get_by_role("row").filter(has_text="migrate keys3")).to_be_visible()
    tab_to(page, "Only of the guest")
    page.keyboard.type("keys4")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row").filter(has_text="migrate keys3")).to_have_count(0)
    expect(page.get_by_role("row").filter(has_text="migrate keys4")).to_be_visible()
    tab_to(page, "Report of migrate keys4, in a new tab")
    with page.expect_popup() as popup:
        page.keyboard.press("Enter")
    expect(popup.value.get_by_role("heading", level=1)).to_have_text("keys4: migrate node1 to node2")


# ---- with a finger, on a small screen


def test_a_move_with_a_finger(place: Served, visit: Visit) -> None:
    guest = place.house.guest("hand1", copy_s=1.0)
    visitor = visit(place, **HAND)
    visitor.enter(Role.FORCE)
    page = visitor.page
    page.get_by_role("button", name="Move hand1", exact=True).tap()
    dialog = page.get_by_role("dialog", name="Move hand1")
    expect(dialog.get_by_role("button", name="Move hand1 to node2")).to_be_enabled()
    for more in ("More choices", "Give up a safeguard", re.compile(r"The \d+ steps"), "The same as commands to type"):
        dialog.get_by_text(more).tap()
    expect(dialog.get_by_label("How", exact=True)).to_be_visible()
    expect(dialog.get_by_label("Without a guard")).to_be_visible()
    visitor.accessible()
    dialog.get_by_label("How", exact=True).scroll_into_view_if_needed()
    visitor.picture("move-confirm-phone")
    dialog.get_by_text("Measure it first").tap()
    dialog.get_by_label("How", exact=True).select_option("live")
    dialog.get_by_label("At most, in MiB/s").tap()
    dialog.get_by_label("At most, in MiB/s").fill("900")
    dialog.get_by_role("button", name="Check again").tap()
    expect(dialog).to_contain_text("It will take about")
    visitor.accessible()
    dialog.get_by_role("button", name="Move hand1 to node2").tap()
    expect(page.get_by_role("heading", level=1, name="Move of hand1")).to_be_focused()
    expect(page.get_by_role("region", name="Outcome")).to_contain_text("hand1 runs on node2.")
    visitor.accessible()
    visitor.picture("move-done-phone")
    assert jobs_of(place, "hand1")[0].order["options"] == {"mode": "live", "forecast_s": 5, "bandwidth_mib_s": 900}
    assert place.house.running(guest) == ["node2"]


def test_an_abort_with_a_finger(place: Served, visit: Visit) -> None:
    guest = place.house.guest("hand2", copy_s=SLOW_S)
    visitor = visit(place, **HAND)
    visitor.enter(Role.MOVE)
    page = visitor.page
    page.get_by_role("button", name="Move hand2", exact=True).tap()
    page.get_by_role("button", name="Move hand2 to node2").tap()
    expect(page.get_by_role("progressbar", name="hand2: step memory")).to_be_visible()
    page.get_by_role("button", name="Abort ...").tap()
    dialog = page.get_by_role("alertdialog", name="Move of hand2: abort it?")
    expect(dialog).to_be_visible()
    visitor.accessible()
    visitor.picture("abort-phone")
    dialog.get_by_role("button", name="Abort it").tap()
    expect(page.get_by_role("region", name="Outcome").get_by_role("link", name="ABORTED")).to_be_visible()
    visitor.accessible()
    visitor.picture("aborted-phone")
    assert place.house.running(guest) == ["node1"]


def test_a_cleanup_with_a_finger(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        guest = own.house.guest("web1")
        ended(own, "web1", UNKNOWN)
        visitor = visit(own, **HAND)
        visitor.enter(Role.MOVE)
        page = visitor.page
        page.get_by_role("link", name="What is known of web1, and the next command").tap()
        visitor.accessible()
        visitor.picture("person-phone")
        page.get_by_role("region", name="Outcome").get_by_role("button", name="Clean up ...").tap()
        dialog = page.get_by_role("dialog", name="Clean up after a move of web1")
        expect(dialog).to_contain_text("What was seen")
        visitor.accessible()
        visitor.picture("cleanup-phone")
        dialog.get_by_role("button", name=re.compile("Clean up web1|Look after web1")).tap()
        expect(page.get_by_role("heading", level=1, name="Cleanup of web1")).to_be_visible()
        expect(page.locator(".state")).to_contain_text("done")
        expect(page.get_by_role("alert")).to_be_empty()
        assert own.house.running(guest) == ["node1"]


def test_what_is_too_wide_for_its_dialog_is_found(place: Served, visit: Visit) -> None:
    """The measure that every other test trusts."""
    place.house.guest("wide1")
    visitor = visit(place, viewport=PHONE)
    visitor.enter(Role.MOVE)
    page = visitor.page
    page.get_by_role("button", name="Move wide1", exact=True).click()
    expect(page.get_by_role("button", name="Move wide1 to node2")).to_be_enabled()
    visitor.accessible()
    page.get_by_label("To", exact=True).evaluate("it => it.style.minWidth = '400px'")
    with pytest.raises(AssertionError, match="field-target"):
        visitor.accessible()


def test_a_move_is_checked_confirmed_and_ordered_once(place: Served, visit: Visit) -> None:
    before, guest = (place.house.guest(name, copy_s=1.0) for name in ("once0", "once1"))
    with place.house.remote() as remote:
        remote.migrate("once0")  # it shows what the link carries
    assert place.house.running(before) == ["node2"]
    visitor = visit(place)
    visitor.enter(Role.MOVE)
    page = visitor.page
    page.get_by_role("button", name="Move once1", exact=True).click()
    dialog = page.get_by_role("dialog", name="Move once1")
    go = dialog.get_by_role("button", name="Move once1 to node2")
    expect(go).to_be_enabled()
    expect(dialog).not_to_contain_text("Give up a safeguard")  # that needs another role
    dialog.get_by_label("Measure it first").check()
    expect(dialog.get_by_role("button", name="Check it first")).to_be_disabled()  # of this nothing was told yet
    dialog.get_by_role("button", name="Check again").click()
    expect(dialog).to_contain_text("It will take about")
    visitor.accessible()
    visitor.picture("move-confirm")
    go.dblclick()
    expect(page.get_by_role("heading", level=1, name="Move of once1")).to_be_focused()
    expect(page.get_by_role("region", name="Outcome")).to_contain_text("once1 runs on node2.")
    forecast = page.get_by_role("table", name="What was told, and what came")
    expect(forecast.get_by_role("row", name="Copy")).to_contain_text(re.compile(r"\ds? .*\d"))
    assert len(jobs_of(place, "once1")) == 1
    assert place.house.running(guest) == ["node2"]


def test_an_order_whose_answer_is_lost_is_given_once(place: Served, visit: Visit) -> None:
    guest = place.house.guest("lost1", copy_s=0.3)
    visitor = visit(place)
    visitor.enter(Role.MOVE)
    page = visitor.page
    answers = []

    def lose(route: Route) -> None:
        """The first one, once the service has heard it."""
        answer = route.fetch()
        answers.append(answer.json()["id"])
        if len(answers) == 1:
            route.abort()
        else:
            route.fulfill(response=answer)

    page.route("**/v1/moves", lose, times=2)
    move(page, "lost1")
    expect(page.get_by_role("region", name="Outcome")).to_contain_text("lost1 runs on node2.")
    assert len(answers) == 2
    assert [job.id for job in jobs_of(place, "lost1")] == [answers[0]]
    assert answers[0] == answers[1]
    assert place.house.running(guest) == ["node2"]


#: Keeps what is read out.
_LISTEN = """() => {
    window.said = [];
    const region = document.getElementById("announce");
    new MutationObserver(() => said.push(region.textContent)).observe(region, {childList: true});
}"""


def test_a_move_is_seen_while_it_lasts(place: Served, visit: Visit) -> None:
    place.house.guest("live1", copy_s=20 * SLOW_S)
    visitor = visit(place)
    visitor.enter(Role.MOVE)
    page = visitor.page
    page.evaluate(_LISTEN)
    move(page, "live1")
    expect(page.get_by_role("progressbar", name="live1: step memory")).to_be_visible()
    steps = page.get_by_role("region", name="Steps").get_by_role("listitem")
    expect(steps).to_have_count(8)
    expect(page.locator("li[aria-current=step]")).to_contain_text("memory: copy the guest's memory")
    expect(page.get_by_role("img", name="Memory to go:")).to_be_visible()
    expect(page.locator(".line-0").first).to_have_attribute("d", CURVE)
    visitor.picture("move-live")
    # Somebody who comes in the middle is shown the curve from its beginning.
    late = visit(place, viewport=PHONE)
    late.enter(Role.LOOK, at=page.url.removeprefix(place.url))
    expect(late.page.locator(".line-0").first).to_have_attribute("d", FROM_ITS_BEGINNING)
    late.accessible()
    late.picture("move-live-phone")
    page.get_by_text("The figures").first.click()
    expect(page.get_by_role("table", name="Figures").first.get_by_role("row").nth(3)).to_be_visible()
    in_world(place, hurry)
    expect(page.get_by_role("region", name="Outcome")).to_contain_text("live1 runs on node2.")
    for number in range(8):
        expect(steps.nth(number)).to_contain_text("done")
    visitor.accessible()
    visitor.picture("move-done")
    # What is read out: states and steps, no figures.
    said = page.evaluate("said")
    assert said[-1] == "Move of live1: done"
    assert 3 <= len(said) <= 14
    assert not any("%" in each or "MiB" in each for each in said)


@pytest.mark.parametrize("viewport", [None, PHONE], ids=["desk", "phone"])
def test_what_was_done_is_in_the_history(place: Served, visit: Visit, viewport: Any) -> None:
    name = "past1" if viewport is None else "past2"
    place.house.guest(name, copy_s=0.3)
    visitor = visit(place, **({} if viewport is None else {"viewport": viewport}))
    visitor.enter(Role.MOVE)
    page = visitor.page
    move(page, name)
    with page.expect_popup() as popup:
        page.get_by_role("link", name="The report").click()
    expect(popup.value.get_by_role("heading", level=1)).to_have_text(f"{name}: migrate node1 to node2")
    expect(popup.value.get_by_text("done after")).to_be_visible()
    page.get_by_role("link", name="History").click()
    row = page.get_by_role("row").filter(has_text=f"migrate {name}")
    expect(row).to_contain_text("node1 to node2")
    expect(row.get_by_role("link", name=f"Report of migrate {name}")).to_be_visible()
    visitor.accessible()
    visitor.picture(f"history-{name}")
    page.get_by_label("Only of the guest").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing is written of nobody.")).to_be_visible()


def test_every_reason_against_a_move_is_told(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        guest = own.house.guest("web1")
        in_world(own, lambda _: guest.resources[0].bring_down("node2"))
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        page.get_by_role("button", name="Move web1").click()
        dialog = page.get_by_role("dialog", name="Move web1")
        expect(dialog.get_by_role("heading", name="It would be refused")).to_be_visible()
        expect(dialog.get_by_role("button", name="Not as it is")).to_be_disabled()
        told = dialog.get_by_role("listitem")
        with own.house.remote() as remote, pytest.raises(Refused) as refused:
            remote.check("web1")
        assert len(refused.value.findings) >= 2
        expect(told).to_have_count(len(refused.value.findings))
        for reason, finding in zip(told.all(), refused.value.findings, strict=True):
            expect(reason.get_by_role("link", name=finding.code.value)).to_have_attribute(
                "href", f"#/codes/{finding.code.value}"
            )
            expect(reason).to_contain_text(finding.sentence.replace("`", ""))
            expect(reason).to_contain_text(finding.hint.replace("`", ""))
        visitor.accessible()
        visitor.picture("refused")
        told.get_by_role("link", name="REPLICA_MISSING").click()
        expect(page.get_by_role("heading", level=1, name="REPLICA_MISSING")).to_be_focused()
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.locator("main")).to_contain_text(EXPLANATIONS[Code.REPLICA_MISSING].remedy.replace("`", ""))
        visitor.accessible()
        assert jobs_of(own, "web1") == []


def test_a_move_is_aborted(place: Served, visit: Visit) -> None:
    guest = place.house.guest("stop1", copy_s=SLOW_S)
    visitor = visit(place)
    visitor.enter(Role.MOVE)
    page = visitor.page
    move(page, "stop1")
    expect(page.get_by_role("progressbar", name="stop1: step memory")).to_be_visible()
    page.get_by_role("button", name="Abort ...").click()
    dialog = page.get_by_role("alertdialog", name="Move of stop1: abort it?")
    expect(dialog).to_contain_text("goes on where it was")
    visitor.accessible()
    visitor.picture("abort")
    dialog.get_by_role("button", name="Keep it going").click()
    expect(dialog).to_have_count(0)
    assert focused(page) == "Abort ..."
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Abort it").click()
    outcome = page.get_by_role("region", name="Outcome")
    expect(outcome.get_by_role("link", name="ABORTED")).to_be_visible()
    expect(page.locator(".state")).to_contain_text("aborted")
    expect(page.get_by_role("alert")).to_be_empty()  # it left nothing open
    assert place.house.running(guest) == ["node1"]


def test_a_move_waits_for_a_place(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        for name in ("a", "b", "c"):
            own.house.guest(name, copy_s=SLOW_S)
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        for name in ("a", "b", "c"):
            page.get_by_role("link", name="Nodes").click()
            move(page, name)
            if name != "c":
                expect(page.get_by_role("progressbar", name=f"{name}: step memory")).to_be_visible()
        expect(page.locator(".state")).to_contain_text("Waits for: a place on node1 and node2")
        page.get_by_role("link", name="Jobs").click()
        waiting = page.get_by_role("table", name="Jobs that wait or are under way")
        expect(waiting.get_by_role("row", name="Move of c")).to_contain_text("queued")
        expect(waiting.get_by_role("row", name="Move of a")).to_contain_text("5 of 8, memory")
        visitor.accessible()
        visitor.picture("jobs")
        page.get_by_role("link", name="Nodes").click()
        node1 = page.get_by_role("region", name="node1")
        expect(node1.get_by_role("progressbar", name="a: step memory")).to_be_visible()
        expect(row_of(page, "a").get_by_role("button", name="Move a")).to_have_count(0)  # it has enough to do
        visitor.picture("nodes-moving")


def test_a_node_is_drained(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        guests = [own.house.guest(f"web{number}", copy_s=1.0) for number in range(2)]
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        page.get_by_role("button", name="Drain node1").click()
        dialog = page.get_by_role("dialog", name="Drain node1")
        expect(dialog.get_by_role("table", name="Who goes where")).to_contain_text("web1")
        dialog.get_by_label("Why, for others to read").fill("new memory")
        dialog.get_by_role("button", name="Check again").click()
        dialog.get_by_role("button", name="Drain node1: move 2 guests").click()
        expect(page.get_by_role("heading", level=1, name="Drain of node1")).to_be_visible()
        expect(page.get_by_role("region", name="Guests")).to_contain_text("2 moved.")
        expect(page.get_by_role("group", name="web1")).to_contain_text(re.compile("web1 ?node1 to node2 ?moved ?live"))
        expect(page.get_by_role("region", name="What happened")).to_contain_text("web1 sets out from node1 to node2")
        visitor.accessible()
        visitor.picture("drained")
        assert [own.house.running(guest) for guest in guests] == [["node2"]] * 2
        page.get_by_role("link", name="Nodes").click()
        expect(page.get_by_role("region", name="node1")).to_contain_text("new memory")
        page.get_by_role("button", name="Bring guests back to node1").click()
        page.get_by_role("button", name="Open node1, and move 2 guests there").click()
        expect(page.get_by_role("heading", level=1, name="Return to node1")).to_be_visible()
        expect(page.locator(".state")).to_contain_text("done")
        expect(page.get_by_role("region", name="Guests")).to_contain_text("2 moved.")
        expect(opened(page, "web0").get_by_text("web0 runs on node1.")).to_be_visible()
        expect(of(page, "web0").locator(".steps > li")).to_have_count(8)
        assert [own.house.running(guest) for guest in guests] == [["node1"]] * 2


def of(page: Page, name: str) -> Locator:
    """A guest's part of a drain."""
    return page.get_by_role("region", name="Guests").get_by_role("group", name=name, exact=True)


def opened(page: Page, name: str) -> Locator:
    """The same, once somebody has opened it."""
    found = of(page, name)
    found.locator("> summary").click()
    return found


def draining(own: Served, page: Page) -> tuple[list[str], str]:
    """Three guests leave a node, and get nowhere before `hurry`: those that are under way, and the one that waits."""
    for number in range(3):
        own.house.guest(f"web{number}", copy_s=20 * SLOW_S)
    page.get_by_role("button", name="Look again").click()
    page.get_by_role("button", name="Drain node1").click()
    page.get_by_role("button", name="Drain node1: move 3 guests").click()
    expect(page.get_by_role("region", name="Guests")).to_contain_text("2 under way, 1 not begun.")
    names = ["web0", "web1", "web2"]
    gone = [name for name in names if of(page, name).get_by_text("under way").count()]
    (waits,) = set(names) - set(gone)
    return gone, waits


def test_every_move_of_a_drain_has_its_curves_its_steps_and_its_outcome(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        (first, second), waits = draining(own, page)
        one = of(page, first)
        expect(page.get_by_role("progressbar", name=f"{first}: step memory")).to_be_visible()
        # Nothing is drawn of one that nobody has opened. It is opened by the keyboard, and the focus stays on it.
        expect(one.locator(".content *")).to_have_count(0)
        one.locator("> summary").focus()
        page.keyboard.press("Enter")
        expect(one).to_have_attribute("open", "")
        expect(one.get_by_role("heading", level=3)).to_have_text(["Forecast", "Curves", "Steps"])
        expect(one).to_contain_text("By the drain's plan it takes about")
        expect(one.locator(".steps > li")).to_have_count(8)
        expect(one.locator("li[aria-current=step]")).to_contain_text("memory: copy the guest's memory")
        expect(one.get_by_role("img", name="Memory to go:")).to_be_visible()
        expect(one.locator(".line-0").first).to_have_attribute("d", CURVE)
        expect(one.locator("> summary")).to_be_focused()
        expect(opened(page, second).locator(".line-0").first).to_have_attribute("d", CURVE)
        opened(page, waits)
        visitor.accessible()
        visitor.picture("drain-live")
        in_world(own, hurry)
        expect(page.get_by_role("region", name="Guests")).to_contain_text("3 moved.")
        for name in (first, second, waits):
            it = of(page, name)
            expect(it.get_by_text(f"{name} runs on node2.")).to_be_visible()
            expect(it).to_contain_text(re.compile(r"Downtime ?[\d.]+ m?s"))
            expect(it).to_contain_text("It took")
            expect(it.get_by_text("done", exact=True)).to_have_count(8)
            expect(it.locator(".line-0").first).to_have_attribute("d", CURVE)
        visitor.accessible()
        visitor.picture("drain-done")
        with page.expect_popup() as popup:
            one.get_by_role("link", name=f"Report of migrate {first}, in a new tab").click()
        expect(popup.value.get_by_role("heading", level=1)).to_have_text(f"{first}: migrate node1 to node2")


def test_who_comes_to_a_drain_later_is_shown_the_same(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        (first, _), waits = draining(own, visitor.page)
        expect(visitor.page.get_by_role("progressbar", name=f"{first}: step memory")).to_be_visible()
        at = visitor.page.url.removeprefix(own.url)
        late = visit(own, **HAND)
        late.enter(Role.LOOK, at=at)
        of(late.page, first).locator("> summary").tap()
        it = of(late.page, first)
        expect(it.locator(".line-0").first).to_have_attribute("d", FROM_ITS_BEGINNING)
        expect(it.locator("li[aria-current=step]")).to_contain_text("memory")
        late.accessible()
        late.picture("drain-live-phone")
        in_world(own, hurry)
        expect(late.page.get_by_role("region", name="Guests")).to_contain_text("3 moved.")
        expect(it.get_by_text(f"{first} runs on node2.")).to_be_visible()
        expect(it.get_by_text("done", exact=True)).to_have_count(8)
        expect(late.page.get_by_role("region", name="What happened")).to_contain_text(f"{first} sets out for node2")
        late.accessible()
        late.picture("drain-done-phone")
        # When all is over, the journal has the plan, what was said, and every move.
        after = visit(own)
        after.enter(Role.LOOK, at=at)
        expect(after.page.get_by_role("table", name="Who goes where")).to_contain_text(waits)
        expect(after.page.get_by_role("region", name="What happened")).to_contain_text(f"{waits} sets out for node2")
        it = opened(after.page, waits)
        expect(it.locator(".line-0").first).to_have_attribute("d", CURVE)
        expect(it.locator(".steps > li")).to_have_count(8)
        expect(it).to_contain_text("By the drain's plan it takes about")


def test_a_guest_of_a_drain_that_does_not_go_says_why(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        slow = own.house.guest("slow1", copy_s=SLOW_S)
        bare = own.house.guest("bare1")
        in_world(own, lambda _: bare.resources[0].bring_down("node2"))
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        page.evaluate(_LISTEN)
        page.get_by_role("button", name="Drain node1").click()
        page.get_by_role("button", name="Drain node1: move 1 guest").click()
        expect(page.get_by_role("progressbar", name="slow1: step memory")).to_be_visible()
        expect(of(page, "bare1")).to_contain_text("stays")
        stays = opened(page, "bare1")
        expect(stays.get_by_role("link", name="REPLICA_MISSING")).to_be_visible()
        expect(stays).to_contain_text("Next:")
        it = opened(page, "slow1")
        expect(it.locator("li[aria-current=step]")).to_contain_text("memory")
        page.get_by_role("button", name="Abort ...").click()
        page.get_by_role("button", name="Abort it").click()
        expect(page.locator(".state")).to_contain_text(re.compile("aborted|not done"))
        expect(it.get_by_role("link", name="ABORTED")).to_be_visible()
        expect(it.locator(".steps > li").filter(has_text="memory:")).to_contain_text("aborted")
        expect(it.locator(".steps > li").last).to_contain_text("not begun")
        visitor.accessible()
        visitor.picture("drain-aborted")
        assert own.house.running(slow) == ["node1"]
        # No figure was read out.
        assert not any("%" in each or "MiB" in each for each in page.evaluate("said"))


# ---- what must not be overlooked


def ended(place: Served, name: str, error: LvmigrateError, uuid: str = "") -> Job:
    """A move that ended so."""
    order = {"what": "migrate", "instance": name}
    facts = {"uuid": uuid, "source": "node1", "target": "node2", "error": error_object(error)}
    return ended_job(place, name, order, error, **facts)


def ended_job(place: Served, about: str, order: dict[str, Any], how: LvmigrateError, **facts: Any) -> Job:
    """One whose outcome is that error's code, half a minute ago."""
    ledger = Ledger(place.house.journal)
    job = Job(
        id=f"20260101-000000-{about.encode().hex()[:8]}",
        what=order["what"],
        about=about,
        order=order,
        subject="token:night",
        priority=Priority.NORMAL,
        state=State.QUEUED,
        asked=time.time() - 60,
    )
    ledger.add(job, key=None, fingerprint="")
    ledger.set(
        job.id,
        state=State.ENDED,
        begun=time.time() - 60,
        ended=time.time() - 30,
        outcome=how.code.value,
        exit_code=int(how.exit_code),
        **facts,
    )
    ledger.close()
    return job


UNKNOWN = OutcomeUnknown(
    "Whether web1 runs on node2 could not be proved.",
    known=["node1 says: paused", "node2 gave no answer"],
    hint="Once both nodes answer: `lvmigrate cleanup --dry-run web1`.",
)
LEFT = LeftBehind(
    "web1 runs on node2, and two primaries are still allowed.",
    leftovers=["two primaries are allowed on web1"],
    hint="Run `lvmigrate cleanup web1`.",
)


@pytest.mark.parametrize("error", [UNKNOWN, LEFT], ids=["unknown", "left behind"])
def test_what_a_person_must_decide_cannot_be_overlooked(tmp_path: Path, visit: Visit, error: LvmigrateError) -> None:
    with served(tmp_path) as own:
        guest = own.house.guest("web1")
        ended(own, "web1", error)
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        for where in ("Nodes", "Jobs", "History"):
            page.get_by_role("link", name=where).click()
            alert = page.get_by_role("alert").get_by_text("a person has to look")
            expect(alert).to_be_in_viewport()
        visitor.accessible()
        page.get_by_role("link", name="What is known of web1, and the next command").click()
        outcome = page.get_by_role("region", name="Outcome")
        for words in (error.sentence, *error_object(error).get("known", ()), *error_object(error).get("leftovers", ())):
            expect(outcome).to_contain_text(words)
        expect(outcome.locator("code")).to_contain_text(["lvmigrate cleanup"])
        visitor.accessible()
        visitor.picture(f"person-{ExitCode(error.exit_code).name.lower()}")
        outcome.get_by_role("button", name="Clean up ...").click()
        dialog = page.get_by_role("dialog", name="Clean up after a move of web1")
        expect(dialog).to_contain_text("What was seen")
        visitor.picture("cleanup")
        dialog.get_by_role("button", name=re.compile("Clean up web1|Look after web1")).click()
        expect(page.get_by_role("heading", level=1, name="Cleanup of web1")).to_be_visible()
        expect(page.locator(".state")).to_contain_text("done")
        expect(page.get_by_role("alert")).to_be_empty()
        page.reload()
        expect(page.locator(".state")).to_contain_text("done")
        expect(page.get_by_role("alert")).to_be_empty()
        assert own.house.running(guest) == ["node1"]


def test_what_a_drain_has_left_for_a_person_is_open_and_can_be_mended(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        guest = own.house.guest("web1")
        finding = {"code": LEFT.code.value, "sentence": LEFT.sentence, "hint": LEFT.hint}
        left = {"uuid": guest.uuid, "name": "web1", "source": "node1", "exit_code": 8, "finding": finding}
        fact = {"what": "drain", "nodes": ["node1"], "seconds": 30.0, "forecast_s": 20.0, "moved": [], "stayed": [left]}
        order = {"what": "drain", "nodes": ["node1"]}
        ended_job(own, "node1", order, LEFT, result={**fact, "not_begun": ["web2"], "off": ["web3"]})
        visitor = visit(own, **HAND)
        visitor.enter(Role.MOVE)
        page = visitor.page
        page.get_by_role("link", name="What is known of node1, and the next command").tap()
        expect(page.get_by_role("region", name="Guests")).to_contain_text("1 stayed, 1 not begun, 1 off.")
        expect(of(page, "web1")).to_have_attribute("open", "")
        expect(of(page, "web1")).to_contain_text(LEFT.sentence)
        expect(of(page, "web1")).to_contain_text("a person has to look")
        visitor.accessible()
        visitor.picture("drain-left-behind-phone")
        of(page, "web2").locator("> summary").tap()
        expect(of(page, "web2")).to_contain_text("It was not begun.")
        of(page, "web1").get_by_role("button", name="Clean up after a move of web1").tap()
        dialog = page.get_by_role("dialog", name="Clean up after a move of web1")
        dialog.get_by_role("button", name=re.compile("Clean up web1|Look after web1")).tap()
        expect(page.locator(".state")).to_contain_text("done")
        expect(page.get_by_role("alert")).to_be_empty()


def test_a_service_that_goes_away_is_waited_for(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        guest = own.house.guest("web1", copy_s=4.0)
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        page = visitor.page
        move(page, "web1")
        expect(page.get_by_role("progressbar", name="web1: step memory")).to_be_visible()
        own.house.kill()
        silent = page.get_by_role("status").filter(has_text="The service gives no answer since")
        expect(silent).to_be_visible()
        expect(page.get_by_role("heading", level=1, name="Move of web1")).to_be_visible()  # as it was then
        visitor.accessible()
        visitor.picture("service-silent")
        own.house.start()
        expect(silent).to_have_count(0)
        expect(page.locator(".state")).to_contain_text("done")
        expect(page.get_by_text("Services that ended meanwhile")).to_be_visible()
        assert own.house.running(guest) == ["node2"]


def test_a_token_that_is_taken_back_ends_the_visit(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path) as own:
        own.house.guest("web1")
        visitor = visit(own)
        visitor.enter(Role.MOVE)
        expect(row_of(visitor.page, "web1")).to_be_visible()
        _, digest = TOKENS[Role.MOVE]
        lines = f'[service.tokens.with-move]\nsha256 = "{digest}"\nrole = "move"\n'
        written = own.house.configuration.read_text()
        assert lines in written
        own.house.configuration.write_text(written.replace(lines, ""))
        assert own.house.process is not None
        own.house.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "access_read_again" in own.house.log.read_text())
        # Nobody touches the page: it asks for the nodes by itself.
        expect(visitor.page.get_by_role("heading", level=1, name="Sign in")).to_be_focused()
        expect(visitor.page.get_by_text("web1")).to_have_count(0)
        # And the browser keeps it no longer.
        assert visitor.context.cookies() == []
