"""The hypervisor adapter: libvirt and KVM. Nothing outside this package imports libvirt."""

from hv.libvirt_kvm import LibvirtHypervisor

__all__ = ["LibvirtHypervisor"]
