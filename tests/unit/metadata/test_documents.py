"""What cloud-init reads, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pvc.cluster.guests import Guest, Guests
from pvc.metadata import documents
from tests.unit.test_guests import NETWORKS, WEB_MAC

GOLDEN = Path(__file__).parent / "golden"


def guest() -> Guest:
    return Guests(NETWORKS).identify("10.1.0.10", lambda *_: WEB_MAC)


def flat(branch: documents.Tree, prefix: str) -> list[str]:
    found = []
    for name, below in branch.items():
        where = f"{prefix}/{name}"
        found += flat(below, where) if isinstance(below, dict) else [f"== {where}\n{below}"]
    return found


def test_everything_that_a_guest_is_told() -> None:
    told = documents.tree(guest())
    text = "\n".join(flat({name: told[name] for name in ("2009-04-04", "nocloud")}, "")) + "\n"
    assert text == (GOLDEN / "guest.txt").read_text()


def test_every_version_is_the_same() -> None:
    told = documents.tree(guest())
    assert {name for name, below in told.items() if below == told["latest"]} == set(documents.VERSIONS)


def test_listing_says_what_has_more_below_it() -> None:
    meta_data: Any = documents.tree(guest())["latest"]
    assert documents.listing(meta_data["meta-data"]).split("\n") == [
        *("hostname", "instance-id", "local-hostname", "local-ipv4", "mac", "network/"),
    ]


def test_network_config_is_json_and_so_yaml() -> None:
    nocloud: Any = documents.tree(guest())["nocloud"]
    devices = json.loads(nocloud["network-config"])["ethernets"].values()
    assert [one["match"]["macaddress"] for one in devices] == [WEB_MAC, "02:00:00:00:00:02"]
