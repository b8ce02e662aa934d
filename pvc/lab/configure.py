"""Writing a node's own files into its layer over the image, before it boots."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pvc.lab import ceph
from pvc.lab.layout import Lab, Node
from pvc.lab.render import node_files

CAPABILITIES = Path("var/cache/libvirt/qemu/capabilities")


def is_configured(lab: Lab, node: Node) -> bool:
    return _mark(lab, node).exists()


def configure(lab: Lab, node: Node) -> None:
    """Only before the first boot: afterwards the files belong to the node. The mark is written last."""
    layer = lab.upper(node)
    for file in (*node_files(lab, node), *ceph.files(lab, node)):
        target = layer / file.path
        _make_folder(lab, layer, Path(file.path).parent)
        target.write_text(file.text)
        target.chmod(file.mode)
        _own_like_folder(target)
    _seed_capabilities(lab, node)
    _mark(lab, node).touch()


def install_program(lab: Lab, node: Node) -> None:
    """The pvc that this node runs from its next boot on."""
    _make_folder(lab, lab.upper(node), Path("usr/bin"))
    target = lab.upper(node) / "usr/bin/pvc"
    new = target.with_suffix(".new")
    shutil.copyfile(lab.program, new)
    new.chmod(0o755)
    new.rename(target)


def _mark(lab: Lab, node: Node) -> Path:
    return lab.home(node) / "configured"


def _make_folder(lab: Lab, layer: Path, folder: Path) -> None:
    """With the owner and mode it has in the image: in an overlay the upper layer's folder counts. One that is
    not in the image belongs to whom the one above it belongs."""
    for each in [*reversed(folder.parents), folder]:
        target = layer / each
        if target.exists():
            continue
        target.mkdir(parents=True)
        below = lab.image_mount / each
        if below.exists():
            shutil.copystat(below, target)
            status = below.stat()
            os.chown(target, status.st_uid, status.st_gid)
        else:
            _own_like_folder(target)


def _own_like_folder(path: Path) -> None:
    status = path.parent.stat()
    os.chown(path, status.st_uid, status.st_gid)


# libvirt asks QEMU at its first start what it can do, which takes two seconds. The answer holds as long as
# image and kernel stay the same (libvirt checks both itself), so the first lab keeps it for the next ones.


def _seed_capabilities(lab: Lab, node: Node) -> None:
    for file in sorted(_kept_capabilities(lab).glob("*.xml")):
        _make_folder(lab, lab.upper(node), CAPABILITIES)
        shutil.copyfile(file, lab.upper(node) / CAPABILITIES / file.name)


def keep_capabilities(lab: Lab, node: Node) -> None:
    """From a node that runs; keeping them is a convenience, so a full disk is no error."""
    kept = _kept_capabilities(lab)
    try:
        for file in sorted((lab.upper(node) / CAPABILITIES).glob("*.xml")):
            if not (kept / file.name).exists():
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, kept / f"{file.name}.new")
                (kept / f"{file.name}.new").rename(kept / file.name)
    except OSError:
        return


def _kept_capabilities(lab: Lab) -> Path:
    return lab.image.with_suffix(".capabilities")
