"""The page in a real browser. Pictures of it go to the directory that LVMIGRATE_PICTURES names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.page.support import Served, Visitor, start


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = start(playwright)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Come to a service; at the end of the test it is seen that the page did nothing wrong."""
    visitors: list[Visitor] = []

    def come(to: Served | str, **how: Any) -> Visitor:
        visitors.append(Visitor(browser, to if isinstance(to, str) else to.url, **how))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.close()
