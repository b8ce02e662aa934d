from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from xml.sax.saxutils import quoteattr

import pytest

from pvc.cluster import domainxml
from pvc.cluster.domainxml import NewDisk, NewNic, Shape, Topology
from pvc.cluster.storage import CephAccess, Monitor
from pvc.cluster.vm import Interface
from pvc.errors import Invalid, Unavailable

UUID = "0a1b2c3d-0000-4000-8000-00000000abcd"
OTHER = "1a1b2c3d-0000-4000-8000-00000000abcd"

# What an administrator may have: things that pvc knows nothing of, prefixes, a comment.
FOREIGN = f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<!-- exported yesterday -->
<domain type='kvm' id='7' xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>buero-1</name>
  <title>Büro</title>
  <uuid>{UUID.upper()}</uuid>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
    <libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
  <memory>2097152</memory>
  <currentMemory unit='GiB'>1</currentMemory>
  <vcpu placement='static' cpuset='0-3' current='2'>4</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='3' cpuset='2'/></cputune>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <features><acpi/><hyperv mode='custom'><relaxed state='on'/></hyperv></features>
  <cpu mode='host-passthrough' check='none'><topology sockets='2' cores='2' threads='1'/>
    <feature policy='require' name='vmx'/></cpu>
  <clock offset='utc'><timer name='rtc'/><timer name='hypervclock' present='yes'/></clock>
  <on_crash>preserve</on_crash>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <!-- the system disk -->
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='rbd' name='vms/web1'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <interface type='network'><mac address='52:54:00:AA:00:01'/><source network='lan'/></interface>
    <interface type='bridge'><source bridge='br7'/><model type='e1000e'/></interface>
    <hostdev mode='subsystem' type='usb'/>
    <serial type='pty'><log file='/tmp/elsewhere'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>
"""

MINIMAL = """<domain type="qemu"><name>m</name><memory unit="MiB">64</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>"""


TWIN_DISK = '<disk><target dev="vda"/></disk>' * 2


def created(**changes: object) -> str:
    wanted: dict[str, object] = {
        "memory_mib": 512,
        "vcpus": 2,
        "disks": [NewDisk("/srv/a.qcow2"), NewDisk("/srv/b.img", "raw")],
        "nics": [NewNic("br0"), NewNic("br0")],
        **changes,
    }
    return domainxml.create("web1", UUID, **wanted)  # type: ignore[arg-type]


def ceph() -> CephAccess:
    monitors = Monitor("10.0.0.1", 3300), Monitor("fd00::1", 6789)
    return CephAccess(monitors, "pvc-vm", "6b29fc40-ca47-1067-b31d-00dd010662db")


def rendered(xml: str, emulation: str = "qemu") -> ET.Element:
    text = domainxml.render(
        xml, emulation=emulation, emulator="/usr/bin/q", console_log="/log/vm.log", ceph=ceph
    )
    return ET.fromstring(text)


def test_a_foreign_definition_is_understood() -> None:
    facts = domainxml.parse(FOREIGN)
    assert (facts.name, facts.uuid) == ("buero-1", UUID)
    assert (facts.memory_mib, facts.vcpus, facts.max_vcpus) == (2048, 2, 4)
    assert facts.topology == Topology(2, 2, 1)
    assert facts.machine == "pc-q35-7.2"
    assert [(disk.target, disk.source, disk.type, disk.device) for disk in facts.disks] == [
        ("vda", "vms/web1", "network", "disk"),
        ("sda", "", "file", "cdrom"),
    ]
    assert [(nic.mac, nic.source, nic.model) for nic in facts.nics] == [
        ("52:54:00:aa:00:01", "lan", ""),
        ("", "br7", "e1000e"),
    ]
    assert facts.has_host_devices
    assert facts.has_guest_agent


def test_what_create_writes_is_what_was_asked() -> None:
    facts = domainxml.parse(created())
    assert (facts.name, facts.uuid, facts.memory_mib, facts.vcpus) == ("web1", UUID, 512, 2)
    assert facts.topology == Topology(1, 2, 1)
    assert [(disk.target, disk.source, disk.format) for disk in facts.disks] == [
        ("vda", "/srv/a.qcow2", "qcow2"),
        ("vdb", "/srv/b.img", "raw"),
    ]
    assert [(nic.source, nic.model) for nic in facts.nics] == [("br0", "virtio")] * 2
    assert not facts.has_host_devices
    assert facts.has_guest_agent


def test_create_boots_a_kernel_or_the_first_disk() -> None:
    direct = ET.fromstring(created(kernel="/k", initrd="/i", cmdline="a='1' <b> & c"))
    assert [direct.findtext(f"os/{tag}") for tag in ("kernel", "initrd", "cmdline")] == [
        "/k",
        "/i",
        "a='1' <b> & c",
    ]
    assert direct.find("os/boot") is None
    assert ET.fromstring(created()).find("os/boot") is not None
    with pytest.raises(Invalid, match="needs a kernel"):
        created(initrd="/i")


def test_create_gives_a_serial_number_only_when_told() -> None:
    made = ET.fromstring(created(serial="ds=nocloud-net;s=http://192.0.2.1/"))
    assert (
        made.findtext("sysinfo[@type='smbios']/system/entry[@name='serial']")
        == "ds=nocloud-net;s=http://192.0.2.1/"
    )
    smbios = made.find("os/smbios")
    assert smbios is not None
    assert smbios.get("mode") == "sysinfo"
    assert ET.fromstring(created()).find("sysinfo") is None


def test_disk_targets_go_on_after_z() -> None:
    facts = domainxml.parse(created(disks=[NewDisk(f"/{n}") for n in range(28)]))
    assert [disk.target for disk in facts.disks[25:]] == ["vdz", "vdaa", "vdab"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mib": 0}, "<memory>"),
        ({"vcpus": 0}, "<vcpu> 0"),
        ({"vcpus": 1000}, "<vcpu> 1000"),
        ({"vcpus": 4, "topology": Topology(2, 1, 1)}, "2,1,1 makes 2"),
        ({"vcpus": 1, "topology": Topology(-1, -1, 1)}, "topology"),
        ({"nics": [NewNic("br0", mac="01:00:00:00:00:01")]}, "multicast"),
        ({"nics": [NewNic("br0", mac="02:00:00:00:00:01")] * 2}, "02:00:00:00:00:01 is used twice"),
        ({"kernel": "/k\x00"}, "not well-formed"),
    ],
)
def test_create_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        created(**changes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</domain>", "", "not well-formed: no element found in line 2"),
        ("<name>m</name>", "<name>m</nam>", "not well-formed: mismatched tag in line 1"),
        ("<name>m</name>", "<x:y/>", "not well-formed: unbound prefix"),
        ("<name>m</name>", "<name>\ud800</name>", "not well-formed"),
        ("<domain ", "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain ", "document type"),
        ("<domain ", "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain ", "document type"),
        ("<name>m</name>", "<a>" * 70 + "</a>" * 70, "nested more than 64 deep"),
        ("<name>m</name>", f"<description>{'x' * 600_000}</description>", "larger than 512 KiB"),
        ('<domain type="qemu">', '<domain type="xen">', 'type="xen"'),
        ('<domain type="qemu">', "<domain>", 'type=""'),
        ("<name>m</name>", "", "<name> is missing"),
        ("<name>m</name>", "<name>  </name>", "<name> is missing"),
        ("<name>m</name>", "<name>a b</name>", "<name> 'a b'"),
        ("<name>m</name>", "<name>../etc</name>", "<name> '../etc'"),
        ("<name>m</name>", f"<name>{'n' * 64}</name>", "is not a VM name"),
        ("<name>m</name>", "<name>a</name><name>b</name>", "<name> appears 2 times"),
        ("<name>m</name>", "<name>m</name><uuid>12</uuid>", "<uuid> '12'"),
        ('<memory unit="MiB">64</memory>', "", "<memory> is missing"),
        ('<memory unit="MiB">64</memory>', "<memory>0</memory>", "<memory> of 0 MiB"),
        ('<memory unit="MiB">64</memory>', "<memory>64.5</memory>", "<memory> is not a number: '64.5'"),
        ('<memory unit="MiB">64</memory>', "<memory>-1</memory>", "<memory> is not a number"),
        ('<memory unit="MiB">64</memory>', "<memory unit='TiB'>99</memory>", "<memory> of"),
        ("MiB", "Mi", '<memory unit="Mi">'),
        ("<vcpu>1</vcpu>", "", "<vcpu> is missing"),
        ("<vcpu>1</vcpu>", "<vcpu>0</vcpu>", "<vcpu> 0"),
        ("<vcpu>1</vcpu>", "<vcpu>x</vcpu>", "<vcpu> is not a number"),
        ("<vcpu>1</vcpu>", "<vcpu current='3'>2</vcpu>", 'current="3"'),
        (
            "<vcpu>1</vcpu>",
            "<vcpu>2</vcpu><cpu><topology sockets='1' cores='1' threads='1'/></cpu>",
            "makes 1 vCPUs",
        ),
        ("<type>hvm</type>", "<type>xen</type>", "<os><type>"),
        ("</domain>", "<devices><disk/></devices></domain>", "<disk> has no <target"),
        (
            "</domain>",
            f"<devices>{TWIN_DISK}</devices></domain>",
            "vda is used twice",
        ),
        (
            "</domain>",
            "<devices><interface><mac address='2'/></interface></devices></domain>",
            "MAC address '2'",
        ),
    ],
)
def test_a_wrong_definition_is_refused_by_element(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(Invalid) as refusal:
        domainxml.parse(MINIMAL.replace(old, new))
    assert message in refusal.value.message


def test_mac_addresses_are_compared_without_case() -> None:
    nics = "".join(f"<interface><mac address='{mac}'/></interface>" for mac in ("52:54:00:aa:0:1", "x"))
    with pytest.raises(Invalid):
        domainxml.parse(MINIMAL.replace("</domain>", f"<devices>{nics}</devices></domain>"))
    twins = "".join(f"<interface><mac address='52:54:00:{end}:00:01'/></interface>" for end in ("AA", "aa"))
    with pytest.raises(Invalid, match="52:54:00:aa:00:01 is used twice"):
        domainxml.parse(MINIMAL.replace("</domain>", f"<devices>{twins}</devices></domain>"))


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ("<memory>65536</memory>", 64),
        ("<memory unit='bytes'>1048577</memory>", 1),
        ("<memory unit='GB'>1</memory>", 953),
        ("<memory unit='g'>1</memory>", 1024),
    ],
)
def test_memory_units(memory: str, mib: int) -> None:
    assert domainxml.parse(MINIMAL.replace('<memory unit="MiB">64</memory>', memory)).memory_mib == mib


def test_complete_gives_stable_addresses_and_keeps_what_is_there() -> None:
    xml = domainxml.complete(FOREIGN, "ffffffff-0000-4000-8000-000000000000")
    facts = domainxml.parse(xml)
    assert facts.uuid == UUID
    assert facts.nics[0].mac == "52:54:00:aa:00:01"
    assert facts.nics[1].mac.startswith("02:")
    assert domainxml.complete(xml, UUID) == xml
    assert domainxml.complete(FOREIGN, UUID) == xml
    assert domainxml.parse(domainxml.complete(MINIMAL, UUID)).uuid == UUID
    other = domainxml.parse(
        domainxml.create("o", "1" + UUID[1:], memory_mib=1, vcpus=1, nics=[NewNic("b")] * 2)
    )
    assert len({nic.mac for nic in (*other.nics, *domainxml.parse(created()).nics)}) == 4


EDITS: dict[str, Callable[[str], str]] = {
    "name": lambda xml: domainxml.set_name(xml, "web2"),
    "uuid": lambda xml: domainxml.set_uuid(xml, "f" + UUID[1:]),
    "memory": lambda xml: domainxml.set_memory(xml, 1024),
    "vcpus": lambda xml: domainxml.set_vcpus(xml, 3),
    "topology": lambda xml: domainxml.set_vcpus(xml, 8, Topology(2, 2, 2)),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("xml", [FOREIGN, MINIMAL, created()], ids=["foreign", "minimal", "created"])
def test_an_edit_changes_its_fact_and_no_other(edit: str, xml: str) -> None:
    before, after = domainxml.parse(xml), domainxml.parse(EDITS[edit](xml))
    wanted = {
        "name": {"name": "web2"},
        "uuid": {"uuid": "f" + UUID[1:]},
        "memory": {"memory_mib": 1024},
        "vcpus": {"vcpus": 3, "max_vcpus": 3, "topology": Topology(1, 3, 1)},
        "topology": {"vcpus": 8, "max_vcpus": 8, "topology": Topology(2, 2, 2)},
    }[edit]
    assert after == replace(before, **wanted)  # type: ignore[arg-type]


def test_an_edit_keeps_what_pvc_does_not_understand() -> None:
    xml = domainxml.set_vcpus(domainxml.set_memory(domainxml.set_name(FOREIGN, "x"), 64), 2)
    for kept in (
        'xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"',
        '<qemu:arg value="-foo" />',
        '<libosinfo:os id="http://debian.org/debian/12" />',
        "<!-- the system disk -->",
        '<vcpupin vcpu="0" cpuset="1" />',
        'cpuset="0-3"',
        "<on_crash>preserve</on_crash>",
        "<title>Büro</title>",
    ):
        assert kept in xml
    assert 'vcpupin vcpu="3"' not in xml
    assert "currentMemory" not in xml


def test_a_rename_touches_the_name_only() -> None:
    xml = created(disks=[NewDisk("/srv/web1.qcow2")], kernel="/web1", cmdline="hostname=web1")
    old, new = xml.splitlines(), domainxml.set_name(xml, "web2").splitlines()
    assert [(a, b) for a, b in zip(old, new, strict=True) if a != b] == [
        ("  <name>web1</name>", "  <name>web2</name>"),
    ]
    with pytest.raises(Invalid, match="not a VM name"):
        domainxml.set_name(xml, "a/b")


@pytest.mark.parametrize("element", ["<maxMemory unit='GiB'>4</maxMemory>", "<cpu><numa/></cpu>"])
def test_memory_of_a_complicated_vm_is_not_guessed(element: str) -> None:
    with pytest.raises(Invalid, match="cannot be set by number"):
        domainxml.set_memory(MINIMAL.replace("</domain>", element + "</domain>"), 128)


def test_render_for_software_emulation_leaves_out_what_only_kvm_has() -> None:
    root = rendered(FOREIGN)
    cpu = root.find("cpu")
    assert root.get("type") == "qemu"
    assert "id" not in root.attrib
    assert cpu is not None
    assert (cpu.attrib, [child.tag for child in cpu]) == ({}, ["topology"])
    assert root.find("features/acpi") is not None
    assert root.find("features/hyperv") is None
    assert [timer.get("name") for timer in root.findall("clock/timer")] == ["rtc"]


def test_render_for_kvm_leaves_the_machine_alone() -> None:
    root = rendered(FOREIGN.replace("type='kvm'", "type='qemu'", 1), "kvm")
    assert root.get("type") == "kvm"
    assert root.find("cpu[@mode='host-passthrough']/feature") is not None
    assert root.find("features/hyperv/relaxed") is not None
    assert len(root.findall("clock/timer")) == 2


def test_render_joins_the_bridges_of_the_cluster_s_networks() -> None:
    xml = domainxml.create("web1", UUID, memory_mib=64, vcpus=1, nics=[NewNic(vni=101)])
    assert domainxml.parse(xml).bridges == ("br101",)
    (nic,) = rendered(xml).findall("devices/interface")
    source = nic.find("source")
    assert source is not None
    assert (nic.get("type"), source.attrib) == ("bridge", {"bridge": "br101"})


@pytest.mark.parametrize("name", ["default", "0101", "101a", ""])
def test_a_network_of_libvirt_s_own_is_left_to_libvirt(name: str) -> None:
    nic = f"<interface type='network'><source network='{name}' portgroup='a'/></interface>"
    xml = MINIMAL.replace("</domain>", f"<devices>{nic}</devices></domain>")
    assert domainxml.parse(xml).bridges == ()
    source = rendered(xml).find("devices/interface[@type='network']/source")
    assert source is not None
    assert source.attrib == {"network": name, "portgroup": "a"}


@pytest.mark.parametrize(
    ("emulator", "expected"),
    [
        ("", "/usr/bin/q"),
        ("<emulator>/usr/bin/kvm</emulator>", "/usr/bin/q"),
        ("<emulator>/opt/qemu-patched</emulator>", "/opt/qemu-patched"),
    ],
)
def test_render_uses_the_nodes_qemu_unless_another_is_asked_for(emulator: str, expected: str) -> None:
    xml = MINIMAL.replace("</domain>", f"<devices>{emulator}</devices></domain>")
    assert rendered(xml).findtext("devices/emulator") == expected
    assert rendered(MINIMAL).findtext("devices/emulator") == "/usr/bin/q"


@pytest.mark.parametrize(
    ("devices", "logged"),
    [
        ("", "serial"),
        ("<serial type='pty'/><serial type='pty'/>", "serial"),
        ("<console type='pty'><target type='virtio'/></console>", "console"),
        ("<serial type='pty'><log file='/a'/></serial><console type='pty'/>", "serial"),
    ],
)
def test_render_logs_one_console(devices: str, logged: str) -> None:
    root = rendered(MINIMAL.replace("</domain>", f"<devices>{devices}</devices></domain>"))
    logs = root.findall(".//log")
    assert [log.attrib for log in logs] == [{"file": "/log/vm.log", "append": "on"}]
    port = root.find(f"devices/{logged}")
    assert port is not None
    assert port.find("log") is logs[0]


def test_render_carries_the_digest_of_the_definition() -> None:
    for xml in (FOREIGN, MINIMAL, created()):
        text = domainxml.render(xml, emulation="kvm", emulator="/q", console_log="/l", ceph=ceph)
        assert domainxml.running(text).digest == domainxml.digest(xml)
        again = domainxml.render(text, emulation="kvm", emulator="/q", console_log="/l", ceph=ceph)
        assert len(ET.fromstring(again).findall("metadata/{urn:pvc:vm}vm")) == 1
        assert domainxml.running(xml).digest == ""
    assert (
        rendered(FOREIGN).find("metadata/{http://libosinfo.org/xmlns/libvirt/domain/1.0}libosinfo")
        is not None
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(
            "</devices>", '<interface><mac address="52:54:00:00:00:09"/></interface>' * 2 + "</devices>"
        ),
        lambda text: text.replace("<vcpu>", "<vcpu>-"),
        lambda text: text.replace("</metadata>", "<x>" * 100 + "</x>" * 100 + "</metadata>"),
        lambda text: text.replace("</metadata>", "<x>" + "y" * domainxml.MAX_BYTES + "</x></metadata>"),
    ],
    ids=["a MAC address twice", "no number", "deep", "large"],
)
def test_a_domain_that_would_be_refused_says_what_it_was_started_with(change: Callable[[str], str]) -> None:
    xml = created()
    text = change(domainxml.render(xml, emulation="kvm", emulator="/q", console_log="/l", ceph=ceph))
    with pytest.raises(Invalid):
        domainxml.parse(text)
    assert domainxml.running(text).digest == domainxml.digest(xml)


def test_what_carries_our_metadata_is_ours_until_it_ends() -> None:
    known = Shape("d", "r", (Interface("52:54:00:00:00:01", "br0", "virtio", "br0", "i"),))
    own = f'<vm xmlns="{domainxml.NAMESPACE}"/>'
    bare, edited, broken = (
        domainxml.running(text)
        for text in ("<domain/>", f"<domain><metadata>{own}</metadata></domain>", f"<domain>{own}")
    )
    assert [one.digest for one in (bare, edited, broken)] == ["", "unreadable", "unreadable"]
    for one in (bare, edited):
        assert domainxml.keep(known, one) == Shape("d", "r")
        assert domainxml.keep(Shape(), one) == one
        assert domainxml.keep(one, known) == known
    assert domainxml.keep(edited, bare).digest == "unreadable"
    plain = Interface("52:54:00:00:00:01", "br0", "virtio", "br0", "")
    assert domainxml.keep(known, Shape(interfaces=(plain,))) == known


def test_the_digest_sees_content_only() -> None:
    xml = created()
    same = xml.replace("\n", "").replace('type="q', ' type="q').replace("<name>", "<!-- c --><name>")
    assert domainxml.digest(xml) == domainxml.digest(same) == domainxml.digest(domainxml.pretty(same))
    assert len({domainxml.digest(edit(xml)) for edit in EDITS.values()} | {domainxml.digest(xml)}) == 6


def test_pretty_is_a_fixed_point() -> None:
    for xml in (FOREIGN, MINIMAL, created()):
        assert domainxml.pretty(domainxml.pretty(xml)) == domainxml.pretty(xml)
        assert domainxml.parse(domainxml.pretty(xml)) == domainxml.parse(xml)


# Interfaces that come and go

NICS = [NewNic("br0", mac=f"52:54:00:00:00:0{number}") for number in (1, 2, 3)]


def with_nics(*nics: domainxml.NewNic) -> str:
    return domainxml.create("web1", UUID, memory_mib=512, vcpus=1, nics=nics)


def test_an_interface_comes_after_the_others_and_goes_alone() -> None:
    xml = with_nics(*NICS[:2])
    more = domainxml.add_nic(xml, NICS[2])
    assert [nic.mac for nic in domainxml.parse(more).nics] == [nic.mac for nic in NICS]
    tags = [one.tag for one in ET.fromstring(more).findall("devices/*")]
    assert tags.index("interface") + 2 == len(tags) - 1 - tags[::-1].index("interface"), "side by side"
    less = domainxml.remove_nic(more, NICS[0].mac)
    assert [nic.mac for nic in domainxml.parse(less).nics] == [nic.mac for nic in NICS[1:]]
    assert domainxml.remove_nic(less, NICS[0].mac) == less
    assert domainxml.remove_nic(more, NICS[2].mac) == xml


def test_an_interface_comes_to_a_definition_without_devices() -> None:
    assert [nic.mac for nic in domainxml.parse(domainxml.add_nic(MINIMAL, NICS[0])).nics] == [NICS[0].mac]


def test_the_shape_tells_interfaces_from_the_rest() -> None:
    xml = with_nics(*NICS[:2])
    shape, more = domainxml.shape(xml), domainxml.shape(domainxml.add_nic(xml, NICS[2]))
    assert shape.digest == domainxml.digest(xml)
    assert (shape.rest, shape.interfaces) == (more.rest, more.interfaces[:2])
    assert shape.digest != more.digest
    bigger = domainxml.shape(domainxml.set_memory(xml, 768))
    assert (bigger.rest != shape.rest, bigger.interfaces) == (True, shape.interfaces)
    other = domainxml.shape(xml.replace('model type="virtio"', 'model type="e1000"', 1))
    assert [
        one.digest == two.digest for one, two in zip(other.interfaces, shape.interfaces, strict=True)
    ] == [
        False,
        True,
    ]
    assert domainxml.shape(domainxml.pretty(xml.replace("\n", ""))) == shape, "not of indentation"


def test_an_interface_with_a_prefix_has_a_digest() -> None:
    xml = with_nics(NICS[0]).replace('<domain type="kvm"', '<domain type="kvm" xmlns:a="urn:a"')
    xml = xml.replace("</interface>", "<a:note>x</a:note></interface>")
    assert (
        domainxml.shape(xml).interfaces[0].digest != domainxml.shape(with_nics(NICS[0])).interfaces[0].digest
    )


def test_what_runs_carries_its_shape() -> None:
    xml = with_nics(*NICS, NewNic(vni=101, mac="52:54:00:00:00:09"))
    text = domainxml.render(xml, emulation="kvm", emulator="/q", console_log="/l", ceph=ceph)
    assert domainxml.running(text) == domainxml.shape(xml)
    assert domainxml.running(text).interfaces[3].network == "101", "though QEMU has it on a bridge"
    gone = domainxml.remove_nic(text, NICS[1].mac)
    assert [one.mac for one in domainxml.running(gone).interfaces] == [
        NICS[0].mac,
        NICS[2].mac,
        "52:54:00:00:00:09",
    ]
    by_hand = domainxml.add_nic(gone, NewNic("br7", mac="52:54:00:00:00:08", model="e1000"))
    added = next(one for one in domainxml.running(by_hand).interfaces if one.mac.endswith("08"))
    assert (added.network, added.model, added.bridge, added.digest) == ("br7", "e1000", "br7", "")
    assert domainxml.bridges(with_nics(NICS[0]), domainxml.running(by_hand).interfaces) == (
        "br0",
        "br101",
        "br7",
    )


def test_the_device_for_libvirt_is_on_a_bridge_and_has_a_name_that_no_second_one_can_have() -> None:
    xml = with_nics(NewNic(vni=101, mac=NICS[0].mac))
    device = ET.fromstring(domainxml.nic_device(xml, NICS[0].mac))
    source, alias = device.find("source"), device.find("alias")
    assert source is not None
    assert alias is not None
    assert (device.get("type"), source.attrib, alias.attrib) == (
        "bridge",
        {"bridge": "br101"},
        {"name": "ua-525400000001"},
    )
    with pytest.raises(Invalid, match="no interface"):
        domainxml.nic_device(xml, NICS[1].mac)


def test_a_q35_machine_has_ports_to_spare() -> None:
    root = rendered(with_nics(*NICS))
    ports = root.findall("devices/controller[@model='pcie-root-port']")
    devices = root.findall("devices/*")
    taken = sum(one.tag in domainxml.ON_PORTS and one not in ports for one in devices)
    assert len(ports) >= taken - 1 + domainxml.SPARE_PORTS
    own = with_nics(NICS[0]).replace(
        "</devices>", "<controller type='pci' model='pcie-root-port'/></devices>"
    )
    assert len(rendered(own).findall("devices/controller[@model='pcie-root-port']")) == 1, "its own choice"
    old = with_nics(NICS[0]).replace('machine="q35"', 'machine="pc"')
    assert not rendered(old).findall("devices/controller[@type='pci']")


# Disks


def test_a_disk_in_ceph_is_reached_by_what_its_node_knows_and_that_changes_no_digest() -> None:
    xml = created(disks=[NewDisk("vms/web1", "raw", is_rbd=True)])
    assert not ET.fromstring(xml).findall("devices/disk/source/*"), "the definition names no host and no key"
    source = rendered(xml).find("devices/disk/source")
    assert source is not None
    hosts = [(one.get("name"), one.get("port")) for one in source.findall("host")]
    assert hosts == [("10.0.0.1", "3300"), ("fd00::1", "6789")]
    auth = source.find("auth")
    assert auth is not None
    assert auth.get("username") == "pvc-vm"
    text = domainxml.render(xml, emulation="qemu", emulator="/q", console_log="/l", ceph=ceph)
    assert domainxml.running(text) == domainxml.shape(xml)
    with pytest.raises(Unavailable):
        domainxml.render(xml, emulation="qemu", emulator="/q", console_log="/l")


def test_a_disk_in_somebody_elses_ceph_is_left_alone() -> None:
    own = '<source protocol="rbd" name="vms/web1"><host name="other"/></source>'
    xml = created(disks=[NewDisk("vms/web1", "raw", is_rbd=True)])
    xml = xml.replace('<source protocol="rbd" name="vms/web1" />', own)
    assert "other" in xml
    text = domainxml.render(xml, emulation="qemu", emulator="/q", console_log="/l")
    assert "<auth" not in text


def test_a_disk_that_comes_later_is_behind_the_one_it_boots_from() -> None:
    xml = created(disks=[NewDisk("/srv/a.raw", "raw"), NewDisk("/srv/b.raw", "raw")])
    xml = domainxml.remove_disk(xml, "vda")
    target = domainxml.free_target(xml, "virtio", taken=["vdd"])
    assert (domainxml.free_target(xml, "virtio"), target, domainxml.free_target(xml, "scsi")) == (
        "vdc",
        "vde",
        "sda",
    )
    new = domainxml.add_disk(xml, NewDisk("/srv/c.raw", "raw"), target)
    assert [disk.target for disk in domainxml.parse(new).disks] == ["vdb", "vde"]
    many = created(disks=[NewDisk(f"/{n}") for n in range(26)])
    assert domainxml.free_target(many, "virtio") == "vdaa"


def test_a_disk_with_quotes_in_its_target_is_as_any_other() -> None:
    plain = created(disks=[NewDisk("/srv/a.raw", "raw"), NewDisk("/srv/b.raw", "raw")])
    for target in ("v'da", 'v"da', "v'd\"a"):
        xml = plain.replace('dev="vda"', f"dev={quoteattr(target)}")
        new = domainxml.replace_disk(xml, NewDisk("/srv/c.raw", "raw"), target)
        assert [disk.source for disk in domainxml.parse(new).disks] == ["/srv/c.raw", "/srv/b.raw"]
        assert [disk.target for disk in domainxml.parse(domainxml.remove_disk(xml, target)).disks] == ["vdb"]


def test_a_scsi_disk_brings_the_controller_that_guests_know() -> None:
    new = domainxml.add_disk(created(), NewDisk("/srv/a.raw", "raw", bus="scsi"), "sda")
    assert domainxml.has_controller(new, "scsi")
    again = domainxml.add_disk(new, NewDisk("/srv/b.raw", "raw", bus="scsi"), "sdb")
    assert len(ET.fromstring(again).findall("devices/controller[@model='virtio-scsi']")) == 1


def test_disks_are_renamed_by_what_they_are_and_not_by_their_text() -> None:
    xml = created(disks=[NewDisk("/srv/disk/disk.qcow2"), NewDisk("/srv/disk/disk.qcow2.old")])
    new = domainxml.rename_disks(xml, {"/srv/disk/disk.qcow2": "/srv/new/disk.qcow2"})
    assert [disk.source for disk in domainxml.parse(new).disks] == [
        "/srv/new/disk.qcow2",
        "/srv/disk/disk.qcow2.old",
    ]


# Copies


def test_a_copy_has_an_identity_of_its_own() -> None:
    xml = domainxml.create("web1", UUID, memory_mib=512, vcpus=1, nics=[NewNic("br0"), NewNic("br1")])
    told = '<sysinfo type="smbios"><system><entry name="uuid">{}</entry></system></sysinfo></domain>'
    xml = xml.replace("</domain>", told.format(UUID))
    copy = domainxml.set_identity(xml, OTHER)
    before, after = domainxml.parse(xml), domainxml.parse(copy)
    assert after.uuid == OTHER
    assert len({*(nic.mac for nic in before.nics), *(nic.mac for nic in after.nics)}) == 4
    assert [nic.source for nic in after.nics] == ["br0", "br1"]
    assert UUID not in copy


@pytest.mark.parametrize("is_rbd", [False, True])
def test_a_disk_is_replaced_by_another_volume_in_its_place(is_rbd: bool) -> None:
    disk = """
    <disk type="file" device="disk"><driver name="qemu" type="qcow2" cache="writeback"/>
      <source file="/srv/vms/a/disk.qcow2"/><target dev="vdb" bus="virtio"/><boot order="2"/>
      <serial>x</serial></disk>
    <disk type="file" device="disk"><source file="/srv/other"/><target dev="vda"/></disk></devices>"""
    plain = domainxml.create("web1", UUID, memory_mib=512, vcpus=1).replace("</devices>", disk)
    new = NewDisk("fast/b", "raw", is_rbd=True) if is_rbd else NewDisk("/srv/vms/b/disk.qcow2")
    xml = domainxml.replace_disk(plain, new, "vdb")
    other, found = sorted(domainxml.parse(xml).disks, key=lambda one: one.target)
    assert other.source == "/srv/other"
    assert (found.source, found.format) == (new.source, new.format)
    assert found.type == ("network" if is_rbd else "file")
    assert '<boot order="2"/>' in xml.replace(" />", "/>")
    assert "<serial>x</serial>" in xml
    assert ('cache="writeback"' in xml) is not is_rbd
    assert ('error_policy="stop"' in xml) is is_rbd
