from __future__ import annotations

import re
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pvc import pki
from pvc.errors import Invalid
from pvc.pki import Certificate, Lifetime
from pvc.proc import CommandFailed, run

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("key") / "cluster.key"
    file.write_text("5" * 64 + "\n")
    return str(file)


@pytest.fixture(scope="module")
def authority(key_file: str) -> tuple[str, str]:
    return pki.create_ca(key_file)


@pytest.fixture(scope="module")
def certificate(authority: tuple[str, str], key_file: str) -> Certificate:
    return pki.issue(*authority, key_file, "n1", ["10.251.1.1", "fd00::1", "n1.example.org"], days=30)


def text_of(cert: str) -> str:
    return run(["openssl", "x509", "-noout", "-text"], stdin=cert).stdout


def test_the_key_of_the_ca_is_of_no_use_without_the_cluster_key(
    authority: tuple[str, str], tmp_path: Path
) -> None:
    assert "BEGIN ENCRYPTED PRIVATE KEY" in authority[1]
    wrong = tmp_path / "wrong"
    wrong.write_text("6" * 64)
    with pytest.raises(CommandFailed):
        pki.issue(*authority, str(wrong), "n1", [])


def test_a_certificate_says_who_and_for_what(certificate: Certificate) -> None:
    text = text_of(certificate.cert)
    for part in (
        "CN = n1",
        "DNS:localhost, DNS:n1, IP Address:10.251.1.1, IP Address:FD00:0:0:0:0:0:0:1, DNS:n1.example.org",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "Digital Signature, Key Encipherment",
        "CA:FALSE",
        "prime256v1",
    ):
        assert part in text
    assert pki.is_issued_by(certificate.cert, certificate.ca)


def test_a_certificate_of_another_cluster_is_refused(certificate: Certificate, key_file: str) -> None:
    assert not pki.is_issued_by(certificate.cert, pki.create_ca(key_file)[0])


def test_a_lifetime_begins_before_now_so_that_clocks_may_differ(certificate: Certificate) -> None:
    life = pki.lifetime(certificate.cert)
    now = datetime.now(UTC)
    assert now - life.begin > timedelta(hours=23)
    assert timedelta(days=29, hours=23) < pki.expires_in(certificate.cert) <= timedelta(days=30)
    assert not pki.needs_renewal(certificate.cert)
    assert pki.lifetime(certificate.ca).left(now) > timedelta(days=19 * 365)


@pytest.mark.parametrize(("day", "needed"), [(0, False), (59, False), (61, True), (90, True), (1000, True)])
def test_the_last_third_of_a_life_is_for_renewal(day: int, needed: bool) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    assert Lifetime(begin, begin + timedelta(days=90)).needs_renewal(begin + timedelta(days=day)) is needed


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(Invalid, match="not a certificate"):
        pki.lifetime("-----BEGIN NONSENSE-----")


def test_install_writes_what_differs(certificate: Certificate, tmp_path: Path) -> None:
    root = str(tmp_path)
    assert pki.installed(root=root) is None
    assert pki.install(certificate, root=root)
    assert not pki.install(certificate, root=root)
    assert pki.installed(root=root) == certificate
    modes = {
        str(file.relative_to(tmp_path)): oct(file.stat().st_mode & 0o777) for file in tmp_path.rglob("*.pem")
    }
    keys = {name for name in modes if re.search(r"key\.pem$", name)}
    assert len(modes) == 13
    assert len(keys) == 5
    assert {modes[name] for name in keys} == {"0o600"}
    assert {modes[name] for name in modes.keys() - keys} == {"0o644"}
    key = tmp_path / "etc/pki/libvirt/private/serverkey.pem"
    key.chmod(0o644)
    assert pki.install(certificate, root=root)
    assert key.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob("*.new"))


def test_half_an_installation_is_none(certificate: Certificate, key_file: str, tmp_path: Path) -> None:
    pki.install(certificate, root=str(tmp_path))
    own = tmp_path / "etc/pvc/tls"
    other = pki.issue(*pki.create_ca(key_file), key_file, "n1")
    (own / "key.pem").write_text(other.key)
    assert pki.installed(root=str(tmp_path)) is None
    (own / "key.pem").write_text("")
    assert pki.installed(root=str(tmp_path)) is None


def test_a_certificate_is_for_its_names_only(certificate: Certificate) -> None:
    assert pki.is_for(certificate.cert, ["n1", "10.251.1.1", "fd00::1", "n1.example.org"])
    assert not pki.is_for(certificate.cert, ["n1", "10.251.1.2"])
    assert not pki.is_for(certificate.cert, ["n2"])


def test_both_sides_of_a_connection_accept_it(certificate: Certificate, tmp_path: Path) -> None:
    pki.install(certificate, root=str(tmp_path))
    own = tmp_path / "etc/pvc/tls"
    contexts = []
    for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(purpose)
        context.load_cert_chain(own / "cert.pem", own / "key.pem")
        context.load_verify_locations(own / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    server_in, server_out, client_in, client_out = (ssl.MemoryBIO() for _ in range(4))
    server = contexts[0].wrap_bio(server_in, server_out, server_side=True)
    client = contexts[1].wrap_bio(client_in, client_out, server_hostname="10.251.1.1")
    done: set[ssl.SSLObject] = set()
    end = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < end:
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    assert done == {client, server}
    peer = server.getpeercert()
    assert peer is not None
    assert peer["subject"] == ((("commonName", "n1"),),)
