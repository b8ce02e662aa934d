"""This node's certificate: issued by itself from the cluster's authority, renewed long before it expires."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pvc import pki
from pvc.cluster import paths
from pvc.cluster.cluster import Authority
from pvc.cluster.codec import loads
from pvc.cluster.store import Reader
from pvc.config import Config
from pvc.errors import NotFound
from pvc.node.drivers import systemd

log = logging.getLogger(__name__)


def ensure(config: Config, store: Reader) -> bool:
    """A good certificate where libvirt, QEMU and pvc look for it.

    Returns whether something changed. Raises NotFound without an authority, CommandFailed if openssl refuses.
    """
    stored = store.get(paths.AUTHORITY)
    if stored is None:
        raise NotFound("the cluster has no certificate authority", hint="pvc --direct cluster init made it")
    authority = loads(Authority, stored.data, stored.path)
    certificate = pki.installed(own=config.paths.tls)
    if certificate is None or not _is_good(config, certificate, authority):
        certificate = _issue(config, authority)
        log.info("issued a certificate for %s", config.node.name)
    return pki.install(certificate, own=config.paths.tls)


def serve(config: Config, changed: bool) -> None:
    """libvirt takes migrations, with the certificate that is there: only once this node is in the cluster.

    After a boot it does not, until the daemon's first life has joined: a VM that arrives before would be
    taken for one of the life before, of which a receipt may say that nothing runs any more.
    """
    systemd.serve_libvirt_over_tls(config.node.address, certificates_changed=changed)


def are_there(config: Config) -> bool:
    """Of an earlier life, good or not."""
    return pki.installed(own=config.paths.tls) is not None


def _is_good(config: Config, certificate: pki.Certificate, authority: Authority) -> bool:
    same_authority = certificate.ca.strip() == authority.certificate.strip()
    return (
        same_authority
        and pki.is_for(certificate.cert, _names(config))
        and pki.is_issued_by(certificate.cert, authority.certificate)
        and not pki.needs_renewal(certificate.cert)
    )


def _issue(config: Config, authority: Authority) -> pki.Certificate:
    own, *addresses = _names(config)
    return pki.issue(authority.certificate, authority.encrypted_key, config.cluster.key_file, own, addresses)


def _names(config: Config) -> list[str]:
    own = config.node
    return [name for name in (own.name, own.address, own.storage_address) if name]


def renew(config: Config, store: Reader, renewed: Callable[[], None]) -> None:
    """A certificate in the last third of its life is replaced under the running services."""
    changed = ensure(config, store)
    serve(config, changed)
    if changed:
        renewed()
