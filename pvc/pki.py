"""The cluster's certificates, made with openssl: its own CA, and one certificate per node for every purpose.

The CA's private key is only ever stored encrypted with the cluster key. Nodes issue their own certificates.
"""

from __future__ import annotations

import os
import pwd
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from pvc.errors import Invalid
from pvc.proc import CommandFailed, run

CA_DAYS = 20 * 365
NODE_DAYS = 365
# Clocks of nodes differ, and a certificate made a moment ago on one of them must be good on all.
BACKDATED = timedelta(days=1)
QEMU_USER = "libvirt-qemu"

CONFIG = """[ca]
default_ca = cluster
[cluster]
database = {work}/index
new_certs_dir = {work}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[node]
basicConstraints = critical, CA:FALSE
# keyEncipherment is of no use to an EC key, but libvirt insists.
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, and the CA that vouches for it, as PEM."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class Lifetime:
    begin: datetime
    end: datetime

    def left(self, now: datetime) -> timedelta:
        return self.end - now

    def needs_renewal(self, now: datetime) -> bool:
        """In the last third of its life."""
        return self.left(now) < (self.end - self.begin) / 3


# Making them


def create_ca(passphrase_file: str, *, days: int = CA_DAYS) -> tuple[str, str]:
    """The certificate and the encrypted key of a new CA. The passphrase is the first line of the file."""
    with _workplace("DNS:cluster") as work:
        key, request = f"{work}/key.pem", f"{work}/request.pem"
        _openssl("genpkey", *_EC, "-aes256", "-pass", f"file:{passphrase_file}", "-out", key)
        unlock = ("-passin", f"file:{passphrase_file}")
        subject = f"/CN=PVC cluster {secrets.token_hex(4)}"
        _openssl(
            "req", "-new", "-config", f"{work}/conf", "-key", key, *unlock, "-subj", subject, "-out", request
        )
        cert = _sign(work, "authority", days, "-selfsign", "-keyfile", key, *unlock)
        return cert, _read(key)


def issue(
    ca_cert: str,
    encrypted_ca_key: str,
    passphrase_file: str,
    name: str,
    addresses: Sequence[str] = (),
    *,
    days: float = NODE_DAYS,
) -> Certificate:
    """A certificate for a node under its name and its addresses, good for servers and clients."""
    names = ["localhost", name, *addresses, "127.0.0.1"]
    with _workplace(", ".join(_alternative_name(each) for each in dict.fromkeys(names))) as work:
        key = f"{work}/key.pem"
        _write(f"{work}/ca.pem", ca_cert)
        _write(f"{work}/ca-key.pem", encrypted_ca_key)
        _openssl("genpkey", *_EC, "-out", key)
        request = ("-subj", f"/CN={name}", "-out", f"{work}/request.pem")
        _openssl("req", "-new", "-config", f"{work}/conf", "-key", key, *request)
        authority = ("-cert", f"{work}/ca.pem", "-keyfile", f"{work}/ca-key.pem")
        cert = _sign(work, "node", days, *authority, "-passin", f"file:{passphrase_file}")
        return Certificate(ca_cert, cert, _read(key))


def lifetime(cert: str) -> Lifetime:
    """Raises Invalid if this is no certificate."""
    try:
        said = run(["openssl", "x509", "-noout", "-dates", "-dateopt", "iso_8601"], stdin=cert).stdout
    except CommandFailed as error:
        raise Invalid(
            "this is not a certificate", hint="it should begin with -----BEGIN CERTIFICATE"
        ) from error
    begin, end = (datetime.fromisoformat(line.partition("=")[2].strip()) for line in said.splitlines()[:2])
    return Lifetime(begin, end)


def expires_in(cert: str) -> timedelta:
    return lifetime(cert).left(datetime.now(UTC))


def needs_renewal(cert: str) -> bool:
    return lifetime(cert).needs_renewal(datetime.now(UTC))


def is_issued_by(cert: str, ca_cert: str) -> bool:
    """Whether the CA vouches for the certificate, now."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as ca:
        ca.write(ca_cert)
        ca.flush()
        return run(["openssl", "verify", "-CAfile", ca.name], stdin=cert, check=False).code == 0


def is_for(cert: str, names: Iterable[str]) -> bool:
    """Whether all these names and addresses are in it: a node may have got another address."""
    return all(_is_for(cert, name) for name in names)


def _is_for(cert: str, name: str) -> bool:
    option = "-checkip" if _alternative_name(name).startswith("IP:") else "-checkhost"
    return " does match " in run(["openssl", "x509", "-noout", option, name], stdin=cert).stdout


def _fits(certificate: Certificate) -> bool:
    """Whether certificate and key belong together: a crash may have come between writing the two."""
    key = run(["openssl", "pkey", "-pubout"], stdin=certificate.key, check=False)
    cert = run(["openssl", "x509", "-noout", "-pubkey"], stdin=certificate.cert, check=False)
    return key.code == cert.code == 0 and key.stdout == cert.stdout


_EC = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def _workplace(names: str) -> tempfile.TemporaryDirectory[str]:
    """A directory that only we can read, with what `openssl ca` wants to find."""
    work = tempfile.TemporaryDirectory(prefix="pvc-pki-")
    _write(f"{work.name}/index", "")
    _write(f"{work.name}/conf", CONFIG.format(work=work.name, names=names))
    return work


def _sign(work: str, extensions: str, days: float, *authority: str) -> str:
    begin = datetime.now(UTC) - BACKDATED
    validity = ("-startdate", _stamp(begin), "-enddate", _stamp(begin + BACKDATED + timedelta(days=days)))
    paths = ("-config", f"{work}/conf", "-in", f"{work}/request.pem", "-out", f"{work}/cert.pem")
    _openssl("ca", "-batch", "-notext", *paths, "-extensions", extensions, *validity, *authority)
    return _read(f"{work}/cert.pem")


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%d%H%M%SZ")


def _alternative_name(name: str) -> str:
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _openssl(*arguments: str) -> None:
    run(["openssl", *arguments])


# Putting them where they are looked for


def install(certificate: Certificate, *, root: str = "/", own: str = "/etc/pvc/tls") -> bool:
    """Write the files of libvirt, QEMU and ourselves where they differ. Returns whether any did."""
    private, shown = certificate.key, certificate.cert
    # QEMU reads its own key after it has dropped root.
    wanted = (
        ("/etc/pki/CA/cacert.pem", certificate.ca, 0o644, ""),
        *((f"/etc/pki/libvirt/private/{side}key.pem", private, 0o600, "") for side in ("server", "client")),
        *((f"/etc/pki/libvirt/{side}cert.pem", shown, 0o644, "") for side in ("server", "client")),
        ("/etc/pki/qemu/ca-cert.pem", certificate.ca, 0o644, ""),
        *((f"/etc/pki/qemu/{side}-key.pem", private, 0o600, QEMU_USER) for side in ("server", "client")),
        *((f"/etc/pki/qemu/{side}-cert.pem", shown, 0o644, "") for side in ("server", "client")),
        (f"{own}/ca.pem", certificate.ca, 0o644, ""),
        (f"{own}/key.pem", private, 0o600, ""),
        (f"{own}/cert.pem", shown, 0o644, ""),
    )
    changed = [_put(Path(root, path.lstrip("/")), text, mode, user) for path, text, mode, user in wanted]
    return any(changed)


def installed(*, root: str = "/", own: str = "/etc/pvc/tls") -> Certificate | None:
    """What install() wrote last; None if there is nothing yet, or only half of it."""
    where = Path(root, own.lstrip("/"))
    try:
        found = Certificate(*(_read(str(where / name)) for name in ("ca.pem", "cert.pem", "key.pem")))
    except FileNotFoundError:
        return None
    return found if _fits(found) else None


def _put(path: Path, text: str, mode: int, user: str) -> bool:
    owner = _uid(user)
    try:
        status = path.stat()
        if path.read_text("ascii") == text and status.st_mode & 0o777 == mode and status.st_uid == owner:
            return False
    except FileNotFoundError:
        pass
    # Directories of keys need no privacy of their own: QEMU has to get through to its key.
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
        os.fchown(file.fileno(), owner, -1)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return True


def _uid(user: str) -> int:
    """Of the user, or ours where there is no such user: then QEMU runs as we do."""
    try:
        return pwd.getpwnam(user).pw_uid if user and os.geteuid() == 0 else os.geteuid()
    except KeyError:
        return os.geteuid()


def _read(path: str) -> str:
    return Path(path).read_text("ascii")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, "ascii")
