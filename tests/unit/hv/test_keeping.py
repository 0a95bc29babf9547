"""What goes with a definition, on a libvirt that can keep the state of a TPM and on one that cannot."""

from __future__ import annotations

from dataclasses import dataclass, field

import libvirt
import pytest

from hv import xml
from hv.keeping import keeping
from lvmigrate.errors import Code, CommandFailed

UUID = "8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3bffff"
NVRAM = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
BOTH = NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
NONE = ""
EMULATED = '<tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm>'
PERSISTENT = EMULATED.replace("version", 'persistent_state="yes" version')
PASSED = '<tpm model="tpm-tis"><backend type="passthrough"><device path="/dev/tpm0"/></backend></tpm>'


@dataclass
class Daemon:
    version: int

    def getLibVersion(self) -> int:  # noqa: N802 -- libvirt's name
        return self.version


@dataclass
class Defined:
    """A guest that is defined and off, on a libvirt of a version."""

    version: int
    devices: str
    asked: list[int] = field(default_factory=list)

    def connect(self) -> Daemon:
        return Daemon(self.version)

    def name(self) -> str:
        return "web1"

    def UUIDString(self) -> str:  # noqa: N802 -- libvirt's name
        return UUID

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802 -- libvirt's name
        self.asked.append(flags)
        return f"<domain><devices>{self.devices}</devices></domain>"


@pytest.mark.parametrize("devices", [NONE, EMULATED, PERSISTENT, PASSED])
@pytest.mark.parametrize("version", [8_009_000, 9_000_000, 11_003_000])
def test_a_libvirt_that_can_is_told_to_keep_both(version: int, devices: str) -> None:
    assert keeping("a", Defined(version, devices)) == BOTH


@pytest.mark.parametrize("devices", [NONE, PERSISTENT, PASSED])
@pytest.mark.parametrize("version", [6_000_000, 8_000_000, 8_008_000])
def test_an_older_one_is_told_nothing_that_it_would_refuse(version: int, devices: str) -> None:
    defined = Defined(version, devices)
    assert keeping("a", defined) == NVRAM
    assert defined.asked == [libvirt.VIR_DOMAIN_XML_INACTIVE]


@pytest.mark.parametrize("version", [6_000_000, 8_000_000, 8_008_000])
def test_an_older_one_keeps_the_definition_rather_than_lose_the_state_of_a_tpm(version: int) -> None:
    with pytest.raises(CommandFailed, match="state of its TPM") as caught:
        keeping("a", Defined(version, EMULATED))
    assert caught.value.code is Code.TPM
    assert f"/var/lib/libvirt/swtpm/{UUID}" in caught.value.hint
    assert "virsh undefine --keep-nvram web1" in caught.value.hint


@pytest.mark.parametrize(("devices", "loses"), [(NONE, False), (PASSED, False), (PERSISTENT, False), (EMULATED, True)])
def test_which_definition_takes_a_tpms_state_with_it(devices: str, *, loses: bool) -> None:
    assert xml.loses_tpm(f"<domain><devices>{devices}</devices></domain>") is loses
