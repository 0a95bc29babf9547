"""The judge of the test guest's records, on images made here: whatever is wrong with one must be seen."""

import dataclasses
import json
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest

from vagrant.guest import records
from vagrant.guest.records import SECTOR, At, Heard, Listener, Record, Verdict, check

RUN = 1_700_000_000
RING = 64

GOOD = Record(
    disk=0,
    disks=1,
    run=RUN,
    n=0,
    clock_ms=0,
    pages_verified=0,
    bad_pages=0,
    passes=0,
    first_bad_page=None,
    first_bad_pass=0,
    io_errors=0,
    record_ms=20,
    mib=8,
    rate=500,
    sectors=RING,
    name="g1",
    payload=bytes(range(256)) + bytes(124),
)


def image(last: int, *, disk: int = 0, disks: int = 1, run: int = RUN, ring: int = RING) -> bytearray:
    """A disk that holds the records up to `last`, one each 20 ms."""
    return written(bytearray(ring * SECTOR), range(last + 1), disk=disk, disks=disks, run=run)


def written(onto: bytearray, numbers: range, *, disk: int = 0, disks: int = 1, run: int = RUN) -> bytearray:
    ring = len(onto) // SECTOR
    for n in numbers[-ring:]:
        record = dataclasses.replace(
            GOOD, n=n, disk=disk, disks=disks, run=run, sectors=ring, clock_ms=n * 20, passes=n // 10
        )
        put(onto, n % ring, record)
    return onto


def put(onto: bytearray, position: int, record: Record) -> None:
    onto[position * SECTOR : (position + 1) * SECTOR] = records.build(record)


def tear(onto: bytearray, position: int) -> None:
    """Only the first half of the sector arrived."""
    onto[position * SECTOR + SECTOR // 2 : (position + 1) * SECTOR] = bytes([0xAA]) * (SECTOR // 2)


def cut_out(onto: bytearray, position: int) -> None:
    onto[position * SECTOR : (position + 1) * SECTOR] = bytes(SECTOR)


# ---- one record ----


def test_a_record_is_read_as_it_was_built() -> None:
    record = dataclasses.replace(GOOD, n=2**40, bad_pages=3, first_bad_page=7, first_bad_pass=2, io_errors=5)
    assert records.parse(records.build(record)) == record


def test_the_layout_is_the_documented_one() -> None:
    sector = records.build(dataclasses.replace(GOOD, n=5, clock_ms=6, disk=1, disks=2))
    assert len(sector) == SECTOR
    assert sector[:8] == b"lvmgrec\x1a"
    assert struct.unpack_from("<4H", sector, 8) == (1, 1, 2, 0)
    assert struct.unpack_from("<3Q", sector, 16) == (RUN, 5, 6)
    assert struct.unpack_from("<I", sector, 60) == (0xFFFF_FFFF,)
    assert struct.unpack_from("<3IIQ", sector, 72) == (20, 8, 500, 0, RING)
    assert sector[96:100] == b"g1\0\0"
    assert sector[128:508] == GOOD.payload


def test_any_flipped_bit_is_seen() -> None:
    sector = records.build(GOOD)
    for bit in range(SECTOR * 8):
        spoilt = bytearray(sector)
        spoilt[bit // 8] ^= 1 << bit % 8
        assert records.parse(spoilt) is None


@pytest.mark.parametrize("sector", [b"", bytes(SECTOR), bytes(SECTOR - 1), records.build(GOOD) + b"\0"])
def test_what_is_no_record(sector: bytes) -> None:
    assert records.parse(sector) is None


# ---- whole disks ----


@pytest.mark.parametrize("last", [0, 1, RING - 2, RING - 1, RING, RING + 1, 10 * RING + 7])
def test_good_rings(last: int) -> None:
    verdict = check([image(last)], name="g1", run=RUN, at_least=last)
    assert verdict.ok, verdict.sentence
    assert (verdict.run, verdict.first, verdict.last) == (RUN, max(0, last - RING + 1), last)
    assert verdict.passes == last // 10
    assert verdict.longest_gap_ms == (20 if last else 0)
    assert not verdict.in_flight


def test_every_record_that_is_cut_out_is_seen() -> None:
    good = image(100)
    for n in range(100 - RING + 1, 100):
        spoilt = bytearray(good)
        cut_out(spoilt, n % RING)
        verdict = check([spoilt], at_least=100)
        assert not verdict.ok
        assert (verdict.missing, verdict.lost_acknowledged) == ((At(0, n),), 0)
    cut_out(good, 100 % RING)
    assert check([good], at_least=100).lost_acknowledged == 1


def test_every_torn_record_is_seen() -> None:
    good = image(100)
    for n in range(100 - RING + 2, 100):
        spoilt = bytearray(good)
        tear(spoilt, n % RING)
        assert check([spoilt], at_least=100).torn == (At(0, n),)


def test_a_flipped_bit_in_each_record_is_seen() -> None:
    good = image(40)
    for n in range(40):
        spoilt = bytearray(good)
        spoilt[n * SECTOR + 300] ^= 4
        verdict = check([spoilt])
        assert not verdict.ok
        assert verdict.torn == (At(0, n),)


def test_a_stale_record_is_missing() -> None:
    """A write that never arrived leaves the record of the lap before, whole."""
    spoilt = image(100)
    put(spoilt, 90 % RING, dataclasses.replace(GOOD, n=90 - RING))
    assert check([spoilt]).missing == (At(0, 90),)


def test_acknowledged_records_that_are_lost() -> None:
    verdict = check([image(50)], at_least=53)
    assert not verdict.ok
    assert verdict.lost_acknowledged == 3
    assert "3 acknowledged records lost" in verdict.sentence


def test_the_newest_record_torn_after_its_acknowledgement() -> None:
    spoilt = image(50)
    tear(spoilt, 50)
    verdict = check([spoilt], at_least=50)
    assert not verdict.ok
    assert (verdict.last, verdict.lost_acknowledged) == (49, 1)


@pytest.mark.parametrize("last", [50, RING - 1, 100])
def test_a_record_in_flight_is_no_fault(last: int) -> None:
    disk = image(last + 1)
    tear(disk, (last + 1) % RING)
    verdict = check([disk], at_least=last)
    assert verdict.ok, verdict.sentence
    assert verdict.in_flight == (At(0, last + 1),)
    assert f"being written: {last + 1} on disk 0" in verdict.sentence


def test_a_torn_record_further_on_is_a_fault() -> None:
    disk = image(50)
    put(disk, 52, dataclasses.replace(GOOD, n=52))
    tear(disk, 52)
    assert check([disk]).torn == (At(0, 52),)


def test_a_hole_before_the_newest() -> None:
    disk = image(50)
    put(disk, 53, dataclasses.replace(GOOD, n=53, clock_ms=53 * 20))
    assert check([disk]).missing == (At(0, 51), At(0, 52))


def test_a_record_out_of_its_place() -> None:
    disk = image(50)
    put(disk, 60, dataclasses.replace(GOOD, n=20))
    verdict = check([disk])
    assert not verdict.ok
    assert "record 20 is out of its place at sector 60" in verdict.sentence


def test_only_the_newest_run_counts() -> None:
    disk = image(200, run=RUN - 10)
    cut_out(disk, 40)
    tear(disk, 45)
    verdict = check([written(disk, range(30))], name="g1", at_least=29)
    assert verdict.ok, verdict.sentence
    assert (verdict.run, verdict.first, verdict.last) == (RUN, 0, 29)


def test_a_torn_record_does_not_pass_for_a_newer_run() -> None:
    disk = image(30)
    put(disk, 50, dataclasses.replace(GOOD, run=RUN + 99, n=50))
    tear(disk, 50)
    verdict = check([disk], at_least=30)
    assert verdict.ok
    assert verdict.run == RUN


def test_another_run_was_heard() -> None:
    assert "the newest run is not" in check([image(30)], run=RUN + 5, at_least=3).sentence


def test_the_list_is_capped_and_the_count_is_not() -> None:
    disk = image(63)
    for position in range(40):
        cut_out(disk, position)
    verdict = check([disk])
    assert (len(verdict.missing), verdict.missing_count) == (records.SHOWN, 40)
    assert "and 24 more" in verdict.sentence


def test_no_record_at_all() -> None:
    for empty in (b"", bytes(SECTOR * RING), b"x" * 1000):
        verdict = check([empty], at_least=4)
        assert not verdict.ok
        assert verdict.lost_acknowledged == 5
        assert verdict.sentence == "no record was found."


def test_an_image_cut_short() -> None:
    verdict = check([image(50)[: 40 * SECTOR]], at_least=50)
    assert not verdict.ok
    assert "has 40 sectors of the 64" in verdict.sentence


def test_the_wrong_guest() -> None:
    assert "guest g1, not of g2" in check([image(50)], name="g2").sentence


def test_the_guests_clock() -> None:
    disk = image(50)
    for n in range(40, 51):
        put(disk, n, dataclasses.replace(GOOD, n=n, clock_ms=n * 20 + 700))
    verdict = check([disk])
    assert verdict.ok
    assert verdict.longest_gap_ms == 720
    put(disk, 45, dataclasses.replace(GOOD, n=45, clock_ms=1))
    assert "clock went back" in check([disk]).sentence


def test_bad_pages() -> None:
    disk = image(50)
    put(disk, 51, dataclasses.replace(GOOD, n=51, clock_ms=1020, bad_pages=2, first_bad_page=17, first_bad_pass=4))
    verdict = check([disk])
    assert not verdict.ok
    assert verdict.bad_pages == 2
    assert "2 bad pages of memory, the first of them page 17 in pass 4" in verdict.sentence


# ---- two disks ----


def pair(last0: int, last1: int) -> list[bytearray]:
    return [image(last0, disk=0, disks=2), image(last1, disk=1, disks=2, ring=48)]


@pytest.mark.parametrize(("last0", "last1"), [(50, 50), (51, 50), (RING, RING - 1), (300, 300)])
def test_disks_in_order(last0: int, last1: int) -> None:
    verdict = check(pair(last0, last1), at_least=last1)
    assert verdict.ok, verdict.sentence
    assert verdict.last == last1
    assert verdict.first == max(0, last1 - 48 + 1)


@pytest.mark.parametrize(("last0", "last1"), [(52, 50), (50, 51), (80, 20), (0, 30)])
def test_disks_out_of_order(last0: int, last1: int) -> None:
    verdict = check(pair(last0, last1))
    assert not verdict.ok
    assert "out of order" in verdict.sentence
    assert check(pair(last0, last1), running=True).ok


def test_a_disk_that_was_left_behind() -> None:
    """The second disk is that of an older run: its replica was stale."""
    disks = [image(50, disk=0, disks=2), image(50, disk=1, disks=2, run=RUN - 100)]
    verdict = check(disks, at_least=50)
    assert not verdict.ok
    assert (verdict.last, verdict.lost_acknowledged) == (-1, 51)


def test_disks_in_the_wrong_order_or_number() -> None:
    first, second = pair(50, 50)
    assert "disk 1 was given as disk 0" in check([second, first]).sentence
    assert "had 2 disks, not 1" in check([first]).sentence


def test_a_fault_of_the_second_disk() -> None:
    disks = pair(40, 40)
    cut_out(disks[1], 13)
    assert check(disks).missing == (At(1, 13),)


def test_large_disks_are_judged_quickly() -> None:
    """Two full disks of 48 MiB, which no early end helps."""
    sectors = 48 * 2048
    built = records.build(dataclasses.replace(GOOD, sectors=sectors))
    disks = []
    for disk in range(2):
        sector = bytearray(built)
        whole = bytearray(sectors * SECTOR)
        struct.pack_into("<HH", sector, 10, disk, 2)
        for n in range(sectors):
            struct.pack_into("<Q", sector, 24, n)
            struct.pack_into("<I", sector, 508, zlib.crc32(sector[:508]))
            whole[n * SECTOR : (n + 1) * SECTOR] = sector
        disks.append(whole)
    began = time.process_time()
    verdict = check(disks, at_least=sectors - 1)
    assert verdict.ok, verdict.sentence
    assert time.process_time() - began < 2


# ---- the command ----


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "disk"
    path.write_bytes(image(50))
    assert records.main(["check", str(path), "--name", "g1", "--at-least", "50"]) == 0
    assert "records 0 to 50: all whole" in capsys.readouterr().out
    assert records.main(["check", str(path), "--at-least", "51", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["last"], answer["lost_acknowledged"]) == (False, 50, 1)
    assert set(answer) == {field.name for field in dataclasses.fields(Verdict)} | {"sentence"}
    assert records.main(["check", str(tmp_path / "none")]) == 2


# ---- the serial port ----


def line(text: str) -> bytes:
    return f"{text} {records.sum_of(text.encode()):02x}\n".encode()


class Sender:
    """A QEMU's serial port: each byte in a datagram of its own."""

    def __init__(self, listener: Listener) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((listener.address, listener.port))

    def send(self, data: bytes) -> None:
        for byte in data:
            self._socket.send(bytes([byte]))

    def announce(self, n: int, *, run: int = RUN, passes: int = 0, bad: int = 0) -> None:
        self.send(line(f"R {run} {n} {passes} {bad}"))

    def close(self) -> None:
        self._socket.close()


def soon() -> float:
    return time.monotonic() + 5


def test_the_guests_own_sums() -> None:
    """Lines that a real guest has sent."""
    heard = records.parse_line(b"R 1795420400 10 0 0 93", at=1.0, sender=("h", 1))
    assert heard == Heard(at=1.0, sender=("h", 1), run=1795420400, n=10, passes=0, bad=0)
    assert isinstance(records.parse_line(b"S 1795420400 243 2c", at=1.0, sender=("h", 1)), records.Said)


def test_a_line_that_lost_any_byte_is_refused() -> None:
    whole = line("R 1700000000 1234 5 0")[:-1]
    for gone in range(len(whole)):
        assert records.parse_line(whole[:gone] + whole[gone + 1 :], at=0, sender=("h", 1)) is None


@pytest.mark.parametrize("text", ["", "R 1 2 3", "R 1 2 3 x", "Q 1 2", "R 1 2 3 4 5"])
def test_a_line_that_makes_no_sense_is_refused(text: str) -> None:
    assert records.parse_line(line(text)[:-1], at=0, sender=("h", 1)) is None


def test_listening_across_a_switch() -> None:
    with Listener() as listener:
        source, target = Sender(listener), Sender(listener)
        try:
            source.send(line(f"B {RUN} 1 8 500 20"))
            source.announce(0)
            listener.wait_for(lambda heard: heard.n == 0, soon())
            source.announce(1)
            source.send(line(f"R {RUN} 2 0 0")[:9])
            target.send(line(f"R {RUN} 2 0 0")[9:])
            listener.wait_for(lambda heard: heard.n == 1, soon())
            mark = listener.mark()
            time.sleep(0.2)
            target.announce(3, passes=1)
            last = listener.wait_for(lambda heard: heard.n == 3, soon())
            assert (last.run, last.n, last.passes, last.bad) == (RUN, 3, 1, 0)
            assert [heard.n for heard in listener.since(mark)] == [3]
            assert 0.2 <= listener.longest_gap(mark, last.at) < 2
            assert [said.text for said in listener.said] == [f"B {RUN} 1 8 500 20"]
            assert listener.mutilated == 1
            assert not listener.twice
            assert listener.last == last
        finally:
            source.close()
            target.close()


def test_two_copies_are_heard() -> None:
    with Listener() as listener:
        source, target = Sender(listener), Sender(listener)
        try:
            source.announce(7)
            listener.wait_for(lambda heard: heard.n == 7, soon())
            target.announce(7)
            target.announce(8)
            listener.wait_for(lambda heard: heard.n == 8, soon())
            assert [heard.n for heard in listener.twice] == [7]
        finally:
            source.close()
            target.close()


def test_a_guest_that_started_again() -> None:
    with Listener() as listener:
        sender = Sender(listener)
        try:
            sender.announce(7)
            sender.announce(0, run=RUN + 5)
            last = listener.wait_for(lambda heard: heard.run > RUN, soon())
            assert last.n == 0
            assert not listener.twice
        finally:
            sender.close()


def test_a_wait_that_ends_without_success_says_what_was_heard() -> None:
    with Listener() as listener:
        sender = Sender(listener)
        try:
            sender.announce(7)
            sender.send(line("E no virtio disk"))
            listener.wait_for(lambda heard: heard.n == 7, soon())
            with pytest.raises(TimeoutError, match=r"n=7.*no virtio disk"):
                listener.wait_for(lambda heard: heard.n == 8, time.monotonic() + 0.2)
        finally:
            sender.close()


def test_a_guest_that_never_came_back_has_a_long_gap() -> None:
    with Listener() as listener:
        mark = listener.mark()
        time.sleep(0.15)
        assert listener.longest_gap(mark) >= 0.15
        assert listener.last is None


def heard(*, passes: int, bad: int = 0, run: int = RUN) -> Heard:
    return Heard(at=0, sender=("h", 1), run=run, n=0, passes=passes, bad=bad)


def test_the_memory_is_verified_after_a_whole_pass() -> None:
    verified = records.verified_since(heard(passes=3))
    assert not verified(heard(passes=4))
    assert verified(heard(passes=5))
    assert verified(heard(passes=3, bad=1))
