"""Undoing: newest first, whatever one of them says, and nothing past the point of no return."""

from __future__ import annotations

from collections.abc import Callable

from lvmigrate.errors import Code
from lvmigrate.rollback import Rollback, Undo
from tests.unit.fakes import refusing


def undo(name: str, act: Callable[[], None], *, only_if_clean: bool = False) -> Undo:
    return Undo(leftover=name, hint="none", act=act, only_if_clean=only_if_clean)


def test_the_newest_comes_first_and_one_that_fails_keeps_none_of_the_others_from_being_done() -> None:
    done: list[str] = []
    rollback = Rollback()
    assert not rollback
    rollback.register(undo("first", lambda: done.append("first")))
    rollback.register(undo("second", refusing("node1")))
    rollback.register(undo("third", lambda: done.append("third")))
    assert rollback
    assert [leftover.undo.leftover for leftover in rollback.run()] == ["second"]
    assert done == ["third", "first"]
    assert rollback.run() == ()
    assert done == ["third", "first"]


def test_a_defect_in_one_keeps_none_of_the_others_from_being_done() -> None:
    done: list[str] = []
    rollback = Rollback()
    rollback.register(undo("first", lambda: done.append("first")))
    rollback.register(undo("second", lambda: done.append({"one": "two"}["three"])))
    (leftover,) = rollback.run()
    assert (leftover.undo.leftover, leftover.error.code) == ("second", Code.INTERNAL)
    assert done == ["first"]


def test_what_may_mend_what_is_left_is_not_taken_away() -> None:
    done: list[str] = []
    for last in (refusing("node1"), lambda: done.append("last")):
        rollback = Rollback()
        rollback.register(undo("record", lambda: done.append("record"), only_if_clean=True))
        rollback.register(undo("last", last))
        rollback.run()
        assert done == ([] if last.__name__ == "fault" else ["last", "record"])
