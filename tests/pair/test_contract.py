"""``hv`` keeps the contract of `lvmigrate.protocols.Hypervisor` on two real libvirt daemons, as the simulator does."""

from __future__ import annotations

import pytest

from hv import LibvirtHypervisor
from lvmigrate.plan import Options, Switch
from tests.contract.hypervisor import HypervisorContract, RealTime
from tests.pair.guest import BUSY, SLOW_MIB_S
from tests.pair.pair import Pair


class Real(RealTime):
    strict = Options(bandwidth_mib_s=SLOW_MIB_S)
    fast = Options(bandwidth_mib_s=SLOW_MIB_S, switch=Switch.FAST)

    def __init__(self, pair: Pair, hv: LibvirtHypervisor) -> None:
        self.hv = hv
        self._pair = pair
        self._guest = pair.guest("web1", on=pair.one, load=BUSY)
        self.uuid = self._guest.uuid

    def hurry(self) -> None:
        self._pair.hurry(self._guest, on=self._pair.one)

    def lose_the_last_reply(self) -> None:
        self._pair.two.drop_long_replies(on=True)

    def kill_qemu(self, node: str) -> None:
        next(host for host in self._pair.hosts if host.name == node).kill_qemu(self._guest.name)


class TestHypervisor(HypervisorContract):
    @pytest.fixture
    def stage(self, pair: Pair, hypervisor: LibvirtHypervisor) -> Real:
        return Real(pair, hypervisor)
