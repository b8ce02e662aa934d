"""A VM's definition: libvirt's domain XML. Checked, created, edited by element, and rendered for a node.

Whatever we do not understand survives, prefixes and comments included: documents are read without namespace
processing, so `qemu:commandline` stays what it was.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from uuid import UUID
from xml.parsers import expat

from pvc import names
from pvc.cluster.network import bridge_name
from pvc.cluster.storage import CephAccess
from pvc.cluster.vm import Drive, Interface
from pvc.errors import Invalid, Unavailable

NAMESPACE = "urn:pvc:vm"
NAME = re.compile(names.VM)
VNI = re.compile(r"[1-9][0-9]{0,7}")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
MAX_BYTES = 512 * 1024  # a definition is one document of the store
MAX_DEPTH = 64
MAX_MEMORY_MIB = 16 * 1024 * 1024
MAX_VCPUS = 288  # what a q35 machine has at most
SHAPES_KEPT = 1024
UNREADABLE = "unreadable"
"""Digest of a domain that is ours, and does not say what it was started with."""
MARKED = ("mac", "network", "model", "bridge", "digest")
"""What a domain carries of each interface."""
MARKED_DRIVE = ("target", "source", "digest")
BUSES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd"}
"""How names of disks begin on each."""
ELSEWHERE = (
    *("devices/filesystem", "devices/hostdev", "devices/shmem"),
    *("devices/memory/source/path", "devices/tpm/backend/source"),
)
"""Where a VM may write besides its disks."""
SPARE_PORTS = 6
"""Devices that a q35 machine can be given while it runs."""
ON_PORTS = ("disk", "interface", "controller", "channel", "rng", "memballoon", "input", "video", "hostdev")
"""Devices that may have a port of their own."""
EMULATORS = ("kvm", "qemu-kvm", "qemu-system-x86_64")  # names that mean "the QEMU of this host"

KIB, MIB = 1024, 1024**2
UNITS = {
    **dict.fromkeys(("b", "bytes"), 1),
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    **dict.fromkeys(("k", "kib"), KIB),
    **dict.fromkeys(("m", "mib"), MIB),
    **dict.fromkeys(("g", "gib"), 1024**3),
    **dict.fromkeys(("t", "tib"), 1024**4),
}


@dataclass(frozen=True, slots=True)
class Disk:
    target: str
    source: str  # path, pool/image, or "" for an empty drive
    type: str  # libvirt's: file, block, network, …
    device: str  # disk, cdrom, …
    format: str
    bus: str = ""
    protocol: str = ""  # of a network disk: rbd, nbd, …
    is_readonly: bool = False


@dataclass(frozen=True, slots=True)
class Nic:
    mac: str  # "" until complete() gave it one
    type: str
    source: str
    model: str

    @property
    def vni(self) -> int | None:
        """Of the network of the cluster that it is in: <interface type="network"> with its number."""
        return int(self.source) if self.type == "network" and VNI.fullmatch(self.source) else None

    @property
    def network(self) -> str:
        """What lists show: a number is a network of the cluster, and nothing else is."""
        if self.vni is not None:
            return str(self.vni)
        return f"{self.type}:{self.source}" if self.source.isdigit() else self.source or self.type

    @property
    def bridge(self) -> str:
        """What its node must have for it; empty: nothing that pvc knows of."""
        if self.vni is not None:
            return bridge_name(self.vni)
        return self.source if self.type == "bridge" else ""


@dataclass(frozen=True, slots=True)
class Topology:
    sockets: int
    cores: int
    threads: int

    @property
    def vcpus(self) -> int:
        return self.sockets * self.cores * self.threads


@dataclass(frozen=True, slots=True)
class Facts:
    """What pvc reads from a definition."""

    name: str
    uuid: str  # "" until complete() gave it one
    memory_mib: int
    vcpus: int  # that it starts with
    max_vcpus: int
    topology: Topology | None
    machine: str
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    has_host_devices: bool  # such a VM cannot migrate live
    has_guest_agent: bool

    @property
    def bridges(self) -> tuple[str, ...]:
        """What a node must have for it."""
        return tuple(sorted({nic.bridge for nic in self.nics} - {""}))


@dataclass(frozen=True, slots=True)
class Shape:
    """What a definition is to QEMU: interfaces and disks, which may come and go while it runs, and all the
    rest."""

    digest: str = ""
    """Of the whole definition; empty: a domain that is not ours."""
    rest: str = ""
    """Of all but the interfaces and disks."""
    interfaces: tuple[Interface, ...] = ()
    drives: tuple[Drive, ...] = ()
    """Disks with something in them; a drive that is empty belongs to the rest."""

    @property
    def devices(self) -> tuple[Interface | Drive, ...]:
        return (*self.interfaces, *self.drives)


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A file, a device of the nodes, or an image of the cluster's Ceph (`rbd`: pool/image)."""

    source: str
    format: str = "qcow2"
    is_rbd: bool = False
    bus: str = "virtio"


@dataclass(frozen=True, slots=True)
class NewNic:
    """On a bridge of the nodes, or in a network of the cluster."""

    bridge: str = ""
    vni: int = 0
    model: str = "virtio"
    mac: str = ""


# --- reading ------------------------------------------------------------------------------------------------


def parse(xml: str) -> Facts:
    """Check a definition; raises Invalid naming the element that is wrong."""
    root = _read(xml)
    if root.tag != "domain":
        raise Invalid(f"the root element is <{root.tag}>, not <domain>", hint="pass a libvirt domain XML")
    kind = root.get("type", "")
    if kind not in ("kvm", "qemu"):
        raise Invalid(f'<domain type="{kind}"> is not a QEMU machine', hint='use type="kvm"')
    vcpus, max_vcpus = _vcpus(root)
    facts = Facts(
        name=_name(root),
        uuid=_uuid(root),
        memory_mib=_memory_mib(root),
        vcpus=vcpus,
        max_vcpus=max_vcpus,
        topology=_topology(root),
        machine=_machine(root),
        disks=tuple(_disk(disk) for disk in root.findall("devices/disk")),
        nics=tuple(_nic(nic) for nic in root.findall("devices/interface")),
        has_host_devices=bool(_host_devices(root)),
        has_guest_agent=root.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None,
    )
    if facts.topology is not None and facts.topology.vcpus != max_vcpus:
        raise Invalid(f"<cpu><topology> makes {facts.topology.vcpus} vCPUs, <vcpu> says {max_vcpus}")
    _refuse_duplicates("<disk> target", (disk.target for disk in facts.disks))
    _refuse_duplicates("<interface> MAC address", (nic.mac for nic in facts.nics if nic.mac))
    return facts


@lru_cache(maxsize=SHAPES_KEPT)
def shape(xml: str) -> Shape:
    """Of a definition. Asked in every round of a daemon for the same few."""
    root = _read(xml)
    devices = root.find("devices")
    interfaces, drives = [], []
    if devices is not None:
        for element in devices.findall("interface"):
            nic = _readable_nic(element)
            if nic is not None and nic.mac:
                interfaces.append(_interface(nic, _part_digest(root, element)))
            devices.remove(element)
        for element in devices.findall("disk"):
            if (drive := _drive(element)) is not None:
                drives.append(replace(drive, digest=_part_digest(root, element)))
                devices.remove(element)
    return Shape(digest(xml), _tree_digest(root), tuple(interfaces), tuple(drives))


def running(xml: str) -> Shape:
    """Of a domain that runs: the devices it has now, each as the definition had it when it came.

    Whatever carries our metadata is ours, and has a digest: also what cannot be read, or was edited by hand.
    """
    try:
        root = _read(xml, limited=False)  # also when somebody has stored much besides in it
    except Invalid:
        return Shape(UNREADABLE) if NAMESPACE in xml else Shape()
    own = _own_metadata(root)
    known = {one.device: one for one in _marked(own)}
    nics = [nic for one in root.findall("devices/interface") if (nic := _readable_nic(one)) is not None]
    found = [drive for one in root.findall("devices/disk") if (drive := _drive(one)) is not None]
    noted = {mac: one for mac, one in known.items() if isinstance(one, Interface)}
    told = {device: one for device, one in known.items() if isinstance(one, Drive)}
    here = tuple(dict.fromkeys(noted.get(nic.mac) or _interface(nic) for nic in nics))
    drives = tuple(dict.fromkeys(told.get(drive.device) or drive for drive in found))
    if own is None:
        return Shape(interfaces=here, drives=drives)
    return Shape(own.get("digest") or UNREADABLE, own.get("rest", ""), here, drives)


def _marked(own: ET.Element | None) -> Iterable[Interface | Drive]:
    for one in () if own is None else own:
        kind = str(one.tag).rpartition(":")[2]  # libvirt gives it the prefix of its parent
        if kind == "interface":
            yield Interface(*(one.get(name, "") for name in MARKED))
        elif kind == "disk":
            yield Drive(*(one.get(name, "") for name in MARKED_DRIVE))


def keep(known: Shape, now: Shape) -> Shape:
    """Of one run, read twice: a domain that was ours stays ours, whatever has become of its metadata."""
    if not known.digest or now.digest not in ("", UNREADABLE):
        return now
    noted = {one.mac: one for one in known.interfaces}
    here = tuple(noted.get(one.mac, one) for one in now.interfaces)
    told = {one.device: one for one in known.drives}
    return Shape(known.digest, known.rest, here, tuple(told.get(one.device, one) for one in now.drives))


def bridges(xml: str, has: Iterable[Interface] = ()) -> tuple[str, ...]:
    """What a node must have for a VM: for its definition, and for the interfaces that it has until it is
    started again. Raises Invalid."""
    return tuple(sorted({*parse(xml).bridges, *(one.bridge for one in has)} - {""}))


@lru_cache(maxsize=SHAPES_KEPT)
def uses_ceph(xml: str) -> bool:
    """Some disk is in the Ceph of the cluster. Raises Invalid."""
    return any(map(_is_in_ceph, _read(xml).findall("devices/disk")))


def in_ceph(xml: str) -> tuple[str, ...]:
    """Its disks in the Ceph of the cluster, by pool and image. Raises Invalid."""
    disks = filter(_is_in_ceph, _read(xml).findall("devices/disk"))
    return tuple(_disk(one).source for one in disks)


@lru_cache(maxsize=SHAPES_KEPT)
def is_all_in_ceph(xml: str) -> bool:
    """It has a disk, and writes nowhere else than to the Ceph of the cluster. Raises Invalid."""
    root = _read(xml)
    disks = [one for one in root.findall("devices/disk") if not _is_empty_drive(one)]
    is_elsewhere = _is_beyond_libvirt(root) or any(root.find(one) is not None for one in ELSEWHERE)
    return bool(disks) and not is_elsewhere and not _has_state(root) and all(map(_is_in_ceph, disks))


def mark(of: Shape) -> str:
    """What a domain carries for a daemon that finds it running: an element without its namespace."""
    return ET.tostring(_mark("vm", of), encoding="unicode")


def digest(xml: str) -> str:
    """Changes when a definition does: neither with indentation, nor comments, nor the order of attributes."""
    _read(xml)  # refuses what canonicalize() must not see
    return hashlib.sha256(ET.canonicalize(xml_data=xml, strip_text=True).encode()).hexdigest()


def pretty(xml: str) -> str:
    """The form in which definitions are stored and shown, to be compared line by line."""
    return _write(_read(xml))


# --- writing ------------------------------------------------------------------------------------------------


def create(
    name: str,
    uuid: str,
    *,
    memory_mib: int,
    vcpus: int,
    disks: Sequence[NewDisk] = (),
    nics: Sequence[NewNic] = (),
    kernel: str = "",
    initrd: str = "",
    cmdline: str = "",
    topology: Topology | None = None,
    serial: str = "",
) -> str:
    """The definition of a modern machine: q35, virtio, serial console, guest agent, no legacy devices.

    `serial` is the number of the machine that its firmware shows to the guest.
    """
    if not kernel and (initrd or cmdline):
        raise Invalid("an initrd or a kernel command line needs a kernel", hint="give --kernel as well")
    root = ET.Element("domain", type="kvm")
    _add(root, "name", name)
    _add(root, "uuid", uuid)
    _add(root, "memory", str(memory_mib), unit="MiB")
    _add(root, "vcpu", str(vcpus))
    boot = _add(root, "os")
    _add(boot, "type", "hvm", arch="x86_64", machine="q35")
    for tag, value in (("kernel", kernel), ("initrd", initrd), ("cmdline", cmdline)):
        if value:
            _add(boot, tag, value)
    if not kernel:
        _add(boot, "boot", dev="hd")
    if serial:
        _add(boot, "smbios", mode="sysinfo")
        system = _add(_add(root, "sysinfo", type="smbios"), "system")
        _add(system, "entry", serial, name="serial")
    features = _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    # The host's model by name, not its very silicon: a VM can move to any node that has the same features.
    _add(root, "cpu", mode="host-model")
    clock = _add(root, "clock", offset="utc")
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="pit", tickpolicy="delay")
    _add(clock, "timer", name="hpet", present="no")
    devices = _add(root, "devices")
    for index, disk in enumerate(disks):
        _add_disk(devices, disk, disk_target(index))
    _add(devices, "controller", type="usb", model="none")
    for nic in nics:
        _add_nic(devices, nic)
    _add_fixed_devices(devices)
    xml = complete(set_vcpus(_write(root), vcpus, topology), uuid)
    parse(xml)
    return xml


def complete(xml: str, uuid: str) -> str:
    """Give a definition the UUID, unless it has one, and MAC addresses, lest each start invents new ones."""
    root = _read(xml)
    if not root.findtext("uuid", "").strip():
        _set_child(root, "uuid", uuid, after="name")
    owner = root.findtext("uuid", "").strip().lower()
    taken = {mac.get("address", "").lower() for mac in root.findall("devices/interface/mac")}
    for index, nic in enumerate(root.findall("devices/interface")):
        mac = nic.find("mac")
        if mac is None:
            mac = ET.Element("mac")
            nic.insert(0, mac)
        if not mac.get("address"):
            mac.set("address", free_mac(owner, index, taken))
            taken.add(mac.get("address", ""))
    return _write(root)


def add_nic(xml: str, nic: NewNic) -> str:
    """After those it has: the order is that in which the guest finds them."""
    root = _read(xml)
    devices = _devices(root)
    _add_nic(devices, nic)
    _sort_in(devices)
    return _write(root)


def add_disk(xml: str, disk: NewDisk, target: str) -> str:
    """After those it has, so that it starts from the same one."""
    root = _read(xml)
    devices = _devices(root)
    _add_disk(devices, disk, target)
    _sort_in(devices)
    return _write(root)


def remove_disk(xml: str, target: str) -> str:
    root = _read(xml)
    devices = _devices(root)
    for element in _disks_at(devices, target):
        devices.remove(element)
    return _write(root)


def rename_disks(xml: str, sources: Mapping[str, str]) -> str:
    """The same disks, called otherwise: by the sources that they have and are to have."""
    root = _read(xml)
    for source in root.findall("devices/disk/source"):
        for key in ("file", "dev", "name"):
            if (new := sources.get(source.get(key, ""))) is not None:
                source.set(key, new)
    return _write(root)


def replace_disk(xml: str, disk: NewDisk, target: str) -> str:
    """Another volume in the place of a disk, of which all stays that is not about where it is kept."""
    root, made = _read(xml), ET.Element("devices")
    _add_disk(made, disk, target)
    for element in _disks_at(_devices(root), target):
        kind = made[-1].get("type", "")
        is_kept = element.get("type") == kind
        element.set("type", kind)
        _remove(element, "auth")
        for tag in ("source", "driver"):
            before, new = element.find(tag), made[-1].find(tag)
            if is_kept and tag == "driver" and before is not None:
                before.set("type", disk.format)
                continue
            place = 0 if before is None else list(element).index(before)
            _remove(element, tag)
            if new is not None:
                element.insert(place, new)
    return _write(root)


def _disks_at(devices: ET.Element, target: str) -> list[ET.Element]:
    """Whatever is in the name, which XPath could not say."""
    return [
        disk
        for disk in devices.findall("disk")
        if (found := disk.find("target")) is not None and found.get("dev") == target
    ]


def free_target(xml: str, bus: str, taken: Iterable[str] = ()) -> str:
    """A name after those of the same kind that it has: what it starts from stays first."""
    letters = BUSES[bus]
    names = [*(disk.target for disk in parse(xml).disks), *taken]
    numbers = [_disk_number(name[len(letters) :]) for name in names if name.startswith(letters)]
    return disk_target(max(numbers, default=-1) + 1, letters)


def has_controller(xml: str, kind: str) -> bool:
    return _read(xml).find(f"devices/controller[@type='{kind}']") is not None


def no_ceph() -> CephAccess:
    raise Unavailable("this node does not reach the cluster's Ceph", hint="pvc storage pool list")


def device(xml: str, device: str, ceph: Callable[[], CephAccess] = no_ceph) -> str:
    """An interface or a disk of a definition as libvirt gets it for a domain that runs. Raises Invalid."""
    return disk_device(xml, device, ceph) if "=" in device else nic_device(xml, device)


def disk_device(xml: str, device: str, ceph: Callable[[], CephAccess] = no_ceph) -> str:
    """libvirt takes no second disk with the same target. Raises Invalid, Unavailable."""
    for element in _read(xml).findall("devices/disk"):
        if (drive := _drive(element)) is not None and drive.device == device:
            _reach_ceph(element, ceph)
            return ET.tostring(element, encoding="unicode").strip()
    raise Invalid(f"the definition has no disk {device}")


def alias(xml: str, device: str) -> str:
    """By which libvirt knows an interface or a disk of a running domain; empty: it has no such one."""
    if "=" not in device:
        return nic_alias(xml, device)
    for element in _read(xml).findall("devices/disk"):
        found = element.find("alias")
        drive = _drive(element)
        if found is not None and drive is not None and drive.device == device:
            return found.get("name", "")
    return ""


def remove_nic(xml: str, mac: str) -> str:
    root = _read(xml)
    devices = root.find("devices")
    for element in () if devices is None else devices.findall("interface"):
        if devices is not None and _has_mac(element, mac):
            devices.remove(element)
    return _write(root)


def nic_device(xml: str, mac: str) -> str:
    """The interface of a definition as libvirt gets it for a domain that runs. Raises Invalid.

    Its alias says who it is: libvirt takes no second device with it, whatever became of a first try.
    """
    devices = _read(xml).find("devices")
    for element in () if devices is None else devices.findall("interface"):
        if devices is not None and _has_mac(element, mac):
            _join_bridges(devices)
            _remove(element, "alias")
            _add(element, "alias", name=f"ua-{mac.replace(':', '')}")
            return ET.tostring(element, encoding="unicode").strip()
    raise Invalid(f"the definition has no interface {mac}")


def nic_alias(xml: str, mac: str) -> str:
    """By which libvirt knows the interface of a running domain; empty: it has no such one."""
    for element in _read(xml).findall("devices/interface"):
        alias = element.find("alias")
        if alias is not None and _has_mac(element, mac):
            return alias.get("name", "")
    return ""


def set_name(xml: str, name: str) -> str:
    _check_name(name)
    root = _read(xml)
    _set_child(root, "name", name)
    return _write(root)


def set_uuid(xml: str, uuid: str) -> str:
    root = _read(xml)
    _set_child(root, "uuid", _check_uuid(uuid), after="name")
    return _write(root)


def set_identity(xml: str, uuid: str) -> str:
    """Another UUID, and MAC addresses of its own: a copy is not taken for the VM that it was made of."""
    root = _read(set_uuid(xml, uuid))
    for nic in root.findall("devices/interface"):
        _remove(nic, "mac")
    for system in root.findall("sysinfo/system"):
        for entry in system.findall("entry[@name='uuid']"):
            system.remove(entry)  # it would have to be the same
    return complete(_write(root), uuid)


def set_memory(xml: str, memory_mib: int) -> str:
    """Both the maximum and what the VM starts with."""
    _check_memory(memory_mib)
    root = _read(xml)
    if root.find("cpu/numa") is not None or root.find("maxMemory") is not None:
        raise Invalid(
            "the memory of a VM with <numa> or <maxMemory> cannot be set by number", hint="pvc vm modify"
        )
    memory = _set_child(root, "memory", str(memory_mib), after="uuid")
    memory.set("unit", "MiB")
    _remove(root, "currentMemory")
    return _write(root)


def set_vcpus(xml: str, vcpus: int, topology: Topology | None = None) -> str:
    """The number of vCPUs, as one socket with that many cores unless a topology is given."""
    _check_vcpus(vcpus)
    topology = topology or Topology(1, vcpus, 1)
    if min(topology.sockets, topology.cores, topology.threads) < 1 or topology.vcpus != vcpus:
        wanted = f"{topology.sockets},{topology.cores},{topology.threads}"
        raise Invalid(f"a topology of {wanted} makes {topology.vcpus} vCPUs, not {vcpus}")
    root = _read(xml)
    if root.find("cpu/numa") is not None:
        raise Invalid("the vCPUs of a VM with <numa> cannot be set by number", hint="pvc vm modify")
    vcpu = _set_child(root, "vcpu", str(vcpus), after="memory")
    vcpu.attrib.pop("current", None)
    _remove(root, "vcpus")
    cpu = root.find("cpu")
    if cpu is None:
        cpu = _add(root, "cpu")
    _remove(cpu, "topology")
    _add(
        cpu,
        "topology",
        sockets=str(topology.sockets),
        cores=str(topology.cores),
        threads=str(topology.threads),
    )
    _drop_pins_beyond(root, vcpus)
    return _write(root)


def render(
    xml: str, *, emulation: str, emulator: str, console_log: str, ceph: Callable[[], CephAccess] = no_ceph
) -> str:
    """What libvirt gets on one node: the domain type that works there (kvm or qemu), its QEMU, a console log,
    how it reaches Ceph.

    It carries the digest of the definition, for a daemon that finds the domain running. Raises Unavailable
    for a disk in Ceph where the node has none.
    """
    root = _read(xml)
    root.set("type", emulation)
    root.attrib.pop("id", None)
    if emulation == "qemu":
        _adapt_to_software_emulation(root)
    devices = root.find("devices")
    if devices is None:
        devices = _add(root, "devices")
    _set_emulator(devices, emulator)
    _join_bridges(devices)
    for disk in devices.findall("disk"):
        _reach_ceph(disk, ceph)
    _leave_room(root, devices)
    _log_console(devices, console_log)
    _set_own_metadata(root, shape(xml))
    return _write(root)


# --- documents ----------------------------------------------------------------------------------------------


def _read(xml: str, *, limited: bool = True) -> ET.Element:
    """The tree as written, with prefixes and comments. No document type: nothing to expand or fetch."""
    data = xml.encode(
        errors="surrogatepass"
    )  # what is not Unicode text is refused by the parser, with its line
    if limited and len(data) > MAX_BYTES:
        raise Invalid(f"the XML is larger than {MAX_BYTES // KIB} KiB")
    # The first parser knows namespaces and so refuses prefixes nobody declared; only the second one builds.
    strict, plain = expat.ParserCreate("utf-8", namespace_separator=" "), expat.ParserCreate("utf-8")
    strict.StartDoctypeDeclHandler = _refuse_document_type
    builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if limited and depth > MAX_DEPTH:
            raise Invalid(f"the XML is nested more than {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def comment(text: str) -> None:
        if depth:  # outside the root there is nothing to attach it to
            builder.comment(text)

    plain.StartElementHandler = start
    plain.EndElementHandler = end
    plain.CharacterDataHandler = builder.data
    plain.CommentHandler = comment
    plain.buffer_text = True
    try:
        strict.Parse(data, True)
        plain.Parse(data, True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise Invalid(f"the XML is not well-formed: {what} in line {error.lineno}") from error
    return builder.close()


def _refuse_document_type(*_: object) -> None:
    raise Invalid("the XML has a document type", hint="remove the <!DOCTYPE> line")


def _write(root: ET.Element) -> str:
    ET.indent(root, "  ")
    return ET.tostring(root, encoding="unicode") + "\n"


def _add(parent: ET.Element, tag: str, text: str = "", /, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text or None
    return child


def _remove(parent: ET.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)


def _devices(root: ET.Element) -> ET.Element:
    devices = root.find("devices")
    return _add(root, "devices") if devices is None else devices


def _sort_in(devices: ET.Element) -> None:
    """The last device comes after the others of its kind."""
    added = devices[-1]
    places = [index for index, one in enumerate(devices) if one.tag == added.tag and one is not added]
    if places:
        devices.remove(added)
        devices.insert(places[-1] + 1, added)


def _set_child(parent: ET.Element, tag: str, text: str, after: str = "") -> ET.Element:
    child = parent.find(tag)
    if child is None:
        child = ET.Element(tag)
        tags = [sibling.tag for sibling in parent]
        parent.insert(tags.index(after) + 1 if after in tags else 0, child)
    child.text = text
    return child


# --- facts --------------------------------------------------------------------------------------------------


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Invalid(
            f"<name> {name!r} is not a VM name" if name else "<name> is missing or empty",
            hint="up to 63 letters, digits, dots, dashes and underscores, the first a letter or digit",
        )
    return name


def _check_uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Invalid(f"<uuid> {text!r} is not a UUID") from None


def _check_memory(memory_mib: int) -> None:
    if not 1 <= memory_mib <= MAX_MEMORY_MIB:
        raise Invalid(f"<memory> of {memory_mib} MiB is not between 1 MiB and {MAX_MEMORY_MIB // MIB} TiB")


def _check_vcpus(vcpus: int) -> None:
    if not 1 <= vcpus <= MAX_VCPUS:
        raise Invalid(f"<vcpu> {vcpus} is not between 1 and {MAX_VCPUS}")


def _only(root: ET.Element, tag: str) -> ET.Element | None:
    found = root.findall(tag)
    if len(found) > 1:
        raise Invalid(f"<{tag}> appears {len(found)} times")
    return found[0] if found else None


def _text(root: ET.Element, tag: str) -> str:
    element = _only(root, tag)
    return "" if element is None else (element.text or "").strip()


def _name(root: ET.Element) -> str:
    return _check_name(_text(root, "name"))


def _uuid(root: ET.Element) -> str:
    text = _text(root, "uuid")
    return _check_uuid(text) if text else ""


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Invalid(f"{what} is not a number: {text!r}")
    return int(text)


def _memory_mib(root: ET.Element) -> int:
    element = _only(root, "memory")
    if element is None:
        raise Invalid("<memory> is missing")
    unit = element.get("unit", "KiB")
    if unit.lower() not in UNITS:
        raise Invalid(f'<memory unit="{unit}"> is not a unit', hint="KiB, MiB or GiB")
    size = _number((element.text or "").strip(), "<memory>") * UNITS[unit.lower()]
    _check_memory(size // MIB)
    return size // MIB


def _vcpus(root: ET.Element) -> tuple[int, int]:
    element = _only(root, "vcpu")
    if element is None:
        raise Invalid("<vcpu> is missing")
    most = _number((element.text or "").strip(), "<vcpu>")
    _check_vcpus(most)
    now = _number(element.get("current", str(most)), "<vcpu current>")
    if not 1 <= now <= most:
        raise Invalid(f'<vcpu current="{now}"> is not between 1 and {most}')
    return now, most


def _topology(root: ET.Element) -> Topology | None:
    element = root.find("cpu/topology")
    if element is None:
        return None
    sockets, cores, threads, dies = (
        _number(element.get(key, "1"), f"<topology {key}>") for key in ("sockets", "cores", "threads", "dies")
    )
    return Topology(sockets * dies, cores, threads)


def _machine(root: ET.Element) -> str:
    kind = root.find("os/type")
    if kind is None or (kind.text or "").strip() != "hvm":
        raise Invalid("<os><type> is not hvm", hint='<os><type arch="x86_64" machine="q35">hvm</type></os>')
    return kind.get("machine", "")


def _host_devices(root: ET.Element) -> list[ET.Element]:
    return root.findall("devices/hostdev") + root.findall("devices/interface[@type='hostdev']")


def _disk(disk: ET.Element) -> Disk:
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    if target is None or not target.get("dev"):
        raise Invalid('a <disk> has no <target dev="…">')
    return Disk(
        target=target.get("dev", ""),
        source="" if source is None else _disk_source(source),
        type=disk.get("type", "file"),
        device=disk.get("device", "disk"),
        format="" if driver is None else driver.get("type", ""),
        bus=target.get("bus", ""),
        protocol="" if source is None else source.get("protocol", ""),
        is_readonly=disk.find("readonly") is not None,
    )


def _is_in_ceph(disk: ET.Element) -> bool:
    """One with hosts of its own may be in another Ceph."""
    source = disk.find("source")
    is_rbd = disk.get("type") == "network" and source is not None and source.get("protocol") == "rbd"
    return is_rbd and source is not None and source.find("host") is None


def _is_beyond_libvirt(root: ET.Element) -> bool:
    """It passes something to QEMU that libvirt does not look at: a disk, for all that we know."""
    return any(str(one.tag).rpartition(":")[2] in ("commandline", "override") for one in root)


def _has_state(root: ET.Element) -> bool:
    """Its firmware keeps variables in a file that the definition names: it may be on what nodes share."""
    nvram = root.find("os/nvram")
    if nvram is not None and ((nvram.text or "").strip() or nvram.find("source") is not None):
        return True
    loader = root.find("os/loader[@type='pflash']")
    return loader is not None and loader.get("readonly") != "yes"


def _is_empty_drive(disk: ET.Element) -> bool:
    source = disk.find("source")
    return disk.get("device") == "cdrom" and (source is None or not _disk_source(source))


def _drive(element: ET.Element) -> Drive | None:
    """None for what cannot be read, has nothing in it, or is no disk."""
    if element.get("device", "disk") != "disk":
        return None
    try:
        disk = _disk(element)
    except Invalid:
        return None
    return Drive(disk.target, disk.source, "") if disk.source else None


def _disk_source(source: ET.Element) -> str:
    if pool := source.get("pool"):
        return f"{pool}/{source.get('volume', '')}"
    return next((source.get(key, "") for key in ("file", "dev", "name", "dir") if source.get(key)), "")


def _nic(nic: ET.Element) -> Nic:
    mac, source, model = nic.find("mac"), nic.find("source"), nic.find("model")
    address = "" if mac is None else mac.get("address", "").lower()
    if address and not MAC.fullmatch(address):
        raise Invalid(f"<interface> MAC address {address!r} is not one", hint="like 52:54:00:12:34:56")
    if address and int(address[:2], 16) & 1:
        raise Invalid(
            f"<interface> MAC address {address} is a multicast address", hint="start it with 52:54:00"
        )
    names = () if source is None else (source.get("bridge"), source.get("network"), source.get("dev"))
    return Nic(
        mac=address,
        type=nic.get("type", ""),
        source=next((name for name in names if name), ""),
        model="" if model is None else model.get("type", ""),
    )


def _interface(nic: Nic, digest: str = "") -> Interface:
    return Interface(nic.mac, nic.network, nic.model, nic.bridge, digest)


def _readable_nic(element: ET.Element) -> Nic | None:
    """Of a definition that nobody has checked yet, or of a domain that somebody else has changed."""
    try:
        return _nic(element)
    except Invalid:
        return None


def _has_mac(element: ET.Element, mac: str) -> bool:
    nic = _readable_nic(element)
    return nic is not None and nic.mac == mac


def _tree_digest(root: ET.Element) -> str:
    return digest(ET.tostring(root, encoding="unicode"))


def _part_digest(root: ET.Element, element: ET.Element) -> str:
    """With what the root says of prefixes."""
    alone = ET.Element(root.tag, {key: text for key, text in root.attrib.items() if key.startswith("xmlns")})
    alone.append(element)
    return _tree_digest(alone)


def _refuse_duplicates(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise Invalid(f"{what} {value} is used twice")
        seen.add(value)


# --- devices ------------------------------------------------------------------------------------------------


def disk_target(index: int, prefix: str = "vd") -> str:
    """vda … vdz, vdaa …"""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return f"{prefix}{letters}"


def _disk_number(letters: str) -> int:
    """The index that disk_target had; -1 where it is no name of that kind."""
    number = 0
    for letter in letters:
        if not "a" <= letter <= "z":
            return -1
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def _add_disk(devices: ET.Element, disk: NewDisk, target: str) -> None:
    kind, place = "file", {"file": disk.source}
    if disk.is_rbd:
        kind, place = "network", {"protocol": "rbd", "name": disk.source}
    elif disk.source.startswith("/dev/"):
        kind, place = "block", {"dev": disk.source}
    element = _add(devices, "disk", type=kind, device="disk")
    # A full or failed Ceph gives errors, which stop the guest until it has room again: nothing is lost.
    more = {"cache": "none", "error_policy": "stop"} if disk.is_rbd else {}
    _add(element, "driver", name="qemu", type=disk.format, **more, discard="unmap")
    _add(element, "source", **place)
    _add(element, "target", dev=target, bus=disk.bus)
    if disk.bus == "scsi" and devices.find("controller[@type='scsi']") is None:
        devices.insert(0, ET.Element("controller", type="scsi", model="virtio-scsi"))


def _add_nic(devices: ET.Element, nic: NewNic) -> None:
    element = _add(devices, "interface", type="network" if nic.vni else "bridge")
    if nic.mac:
        _add(element, "mac", address=nic.mac.lower())
    if nic.vni:
        _add(element, "source", network=str(nic.vni))
    else:
        _add(element, "source", bridge=nic.bridge)
    _add(element, "model", type=nic.model)
    _add(element, "rom", enabled="no")


def _add_fixed_devices(devices: ET.Element) -> None:
    serial = _add(devices, "serial", type="pty")
    _add(serial, "target", port="0")
    console = _add(devices, "console", type="pty")
    _add(console, "target", type="serial", port="0")
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    balloon = _add(devices, "memballoon", model="virtio")
    _add(balloon, "stats", period="10")
    _add(devices, "panic", model="isa")  # so that libvirt hears of a kernel that crashed


def free_mac(uuid: str, index: int, taken: Collection[str]) -> str:
    """A locally administered address that is always the same for this NIC."""
    salt = 0
    while True:
        seed = hashlib.sha256(f"{uuid}/{index}/{salt}".encode()).digest()[:5]
        mac = ":".join(f"{byte:02x}" for byte in (0x02, *seed))
        if mac not in taken:
            return mac
        salt += 1


def _drop_pins_beyond(root: ET.Element, vcpus: int) -> None:
    tuning = root.find("cputune")
    if tuning is None:
        return
    for pin in tuning.findall("vcpupin"):
        if _number(pin.get("vcpu", "0"), "<vcpupin vcpu>") >= vcpus:
            tuning.remove(pin)


# --- rendering ----------------------------------------------------------------------------------------------


def _adapt_to_software_emulation(root: ET.Element) -> None:
    """Leave out what only KVM has: the host's CPU and its features, and paravirtualisation."""
    cpu = root.find("cpu")
    if cpu is not None:
        cpu.attrib.clear()
        for child in list(cpu):
            if child.tag not in ("topology", "numa"):
                cpu.remove(child)
        if not len(cpu):
            root.remove(cpu)
    features = root.find("features")
    if features is not None:
        for tag in ("hyperv", "kvm", "pvspinlock", "ioapic"):
            _remove(features, tag)
    clock = root.find("clock")
    if clock is not None:
        for timer in clock.findall("timer"):
            if timer.get("name") in ("kvmclock", "hypervclock"):
                clock.remove(timer)


def _set_emulator(devices: ET.Element, emulator: str) -> None:
    """The node's QEMU, unless the definition asks for one of its own."""
    element = devices.find("emulator")
    if element is None:
        element = ET.Element("emulator")
        devices.insert(0, element)
    if (element.text or "").strip().rsplit("/", 1)[-1] in ("", *EMULATORS):
        element.text = emulator


def _join_bridges(devices: ET.Element) -> None:
    """libvirt knows bridges; that a network of the cluster has one on each node is ours to know."""
    for element in devices.findall("interface"):
        source, bridge = element.find("source"), _nic(element).bridge
        if source is not None and bridge and element.get("type") == "network":
            element.set("type", "bridge")
            source.attrib.clear()
            source.set("bridge", bridge)


def _reach_ceph(disk: ET.Element, ceph: Callable[[], CephAccess]) -> None:
    """One in the cluster's Ceph is named without hosts; one that names its own is somebody else's."""
    source = disk.find("source[@protocol='rbd']") if disk.get("type") == "network" else None
    if source is None or source.find("host") is not None:
        return
    access = ceph()
    for monitor in access.monitors:
        _add(source, "host", name=monitor.host, port=str(monitor.port))
    _remove(disk, "auth")
    _remove(source, "auth")
    auth = _add(source, "auth", username=access.user)
    _add(auth, "secret", type="ceph", uuid=access.secret)


def _leave_room(root: ET.Element, devices: ET.Element) -> None:
    """On q35 a device that comes later needs a port that was there at the start; libvirt leaves one."""
    kind = root.find("os/type")
    if (
        kind is None
        or "q35" not in kind.get("machine", "")
        or devices.find("controller[@model='pcie-root-port']") is not None
    ):
        return
    taken = sum(one.tag in ON_PORTS for one in devices)
    if devices.find("controller[@model='pcie-root']") is None:
        _add(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(taken + SPARE_PORTS):
        _add(devices, "controller", type="pci", model="pcie-root-port")


def _log_console(devices: ET.Element, path: str) -> None:
    """Log the first serial port; failing that the first console; failing that a serial port we add."""
    port = devices.find("serial")
    if port is None:
        port = devices.find("console")
    if port is None:
        port = _add(devices, "serial", type="pty")
        _add(port, "target", port="0")
    _remove(port, "log")
    _add(port, "log", file=path, append="on")


def _own_metadata(root: ET.Element) -> ET.Element | None:
    metadata = root.find("metadata")
    own = () if metadata is None else tuple(child for child in metadata if NAMESPACE in child.attrib.values())
    return own[0] if own else None


def _set_own_metadata(root: ET.Element, of: Shape) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        root.insert(1, metadata)
    own = _own_metadata(root)
    if own is not None:
        metadata.remove(own)
    own = _mark("pvc:vm", of)
    own.set("xmlns:pvc", NAMESPACE)
    metadata.append(own)


def _mark(tag: str, of: Shape) -> ET.Element:
    own = ET.Element(tag, digest=of.digest, rest=of.rest)
    for one in of.interfaces:
        _add(own, "interface", **{name: getattr(one, name) for name in MARKED})
    for drive in of.drives:
        _add(own, "disk", **{name: getattr(drive, name) for name in MARKED_DRIVE})
    return own
