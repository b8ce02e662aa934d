"""Floating addresses as people write them, and where they belong."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from pvc.cluster.addresses import device_for, parse
from pvc.errors import Invalid


@pytest.mark.parametrize(
    "text", ["10.0.0.250/24", "10.0.0.250/32", "10.0.0.1/31", "fd00::fa/64", "fd00::fa/128"]
)
def test_good(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0.250", "10.0.0.250/33", "10.0.0.256/24", "n1/24", "10.0.0.250/24/24", "fd00::fa"),
        *(
            "127.0.0.1/8",
            "::1/128",
            "224.0.0.1/24",
            "ff02::1/64",
            "169.254.1.1/16",
            "fe80::1/64",
            "fe80::1%a/64",
        ),
        *("0.0.0.0/0", "::/0", "10.0.0.0/24", "10.0.0.255/24", "fd00::/64"),
    ],
)
def test_bad(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)


@pytest.mark.parametrize(
    ("wanted", "device"),
    [
        ("10.0.0.250/24", "br0"),
        ("10.0.7.250/24", "wide"),
        ("10.0.0.250/32", "br0"),
        ("192.0.2.250/24", None),
        ("fd00::250/64", "br0"),
        ("fd01::250/64", None),
    ],
)
def test_device(wanted: str, device: str | None) -> None:
    own = [("wide", "10.0.5.1/16"), ("br0", "10.0.0.1/24"), ("br0", "fd00::1/64")]
    assert device_for(ip_interface(wanted), ((name, ip_interface(one)) for name, one in own)) == device
