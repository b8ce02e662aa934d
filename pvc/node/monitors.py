"""The monitors of the Ceph that this node has been told of."""

from __future__ import annotations

from typing import Any, Protocol

from pvc.errors import Unavailable


class Monitors(Protocol):
    def command(self, prefix: str, data: bytes = b"", **arguments: Any) -> Any:
        """What they answer, from JSON. Raises DriverError, Unavailable."""
        ...


def connect() -> Monitors:
    """Raises Unavailable."""
    try:
        from pvc.node.drivers.ceph import Ceph
    except ImportError:
        raise Unavailable("this node has no client of Ceph", hint="apt-get install python3-rados") from None
    return Ceph()
