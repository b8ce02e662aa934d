"""systemd: asking it to run others' services."""

from __future__ import annotations

import logging
from pathlib import Path

from pvc.proc import run

log = logging.getLogger(__name__)

LIBVIRT_SOCKETS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
TLS_SOCKET = "libvirtd-tls.socket"
LIBVIRT_TLS_PORT = 16514


def is_active(unit: str) -> bool:
    return run(["systemctl", "is-active", "--quiet", unit], check=False).code == 0


def is_enabled(unit: str) -> bool:
    return run(["systemctl", "is-enabled", "--quiet", unit], check=False).code == 0


def start(*units: str) -> None:
    run(["systemctl", "start", *units])


def stop(*units: str) -> None:
    run(["systemctl", "stop", *units])


def restart(*units: str) -> None:
    run(["systemctl", "restart", *units])


def disable(*units: str) -> None:
    run(["systemctl", "disable", "--quiet", *units])


def reload_units() -> None:
    run(["systemctl", "daemon-reload"])


def serve_libvirt_over_tls(address: str, *, certificates_changed: bool, root: str = "/") -> None:
    """Let libvirtd listen on the cluster address, for TLS clients with a certificate of the cluster only.

    Until the machine boots again: the socket is not enabled. Call it with certificates in place: libvirtd
    does not start with bad ones. Domains run on meanwhile.
    """
    if is_enabled(TLS_SOCKET):
        disable(TLS_SOCKET)  # by an older pvc
    drop_in = Path(root, f"etc/systemd/system/{TLS_SOCKET}.d/pvc.conf")
    text = f"[Socket]\nListenStream=\nListenStream={_bracketed(address)}:{LIBVIRT_TLS_PORT}\nFreeBind=yes\n"
    if not drop_in.is_file() or drop_in.read_text("ascii") != text:
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(text, "ascii")
        reload_units()
    elif is_active(TLS_SOCKET):
        if certificates_changed:
            reload_libvirt_certificates()
        return
    # A socket cannot be added to a service that runs; and the other sockets would start it again too early.
    stop("libvirtd.service", *LIBVIRT_SOCKETS, TLS_SOCKET)
    start(*LIBVIRT_SOCKETS, TLS_SOCKET)
    start("libvirtd.service")
    log.info("libvirt serves TLS on %s", address)


def reload_libvirt_certificates() -> None:
    """Without a restart, which would end migrations; if libvirtd is not running it will read them anyway."""
    if is_active("libvirtd.service"):
        run(["virt-admin", "server-update-tls", "libvirtd"])


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
