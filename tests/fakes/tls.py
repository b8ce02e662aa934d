"""A TLS end in front of a plain port, as the packaged nginx is; with a certificate made on the spot."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path


def certificate(directory: Path, name: str = "localhost") -> tuple[str, str]:
    """Files of a self-signed certificate and its key."""
    cert, key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@contextlib.contextmanager
def terminated(port: int, cert: str, key: str) -> Iterator[int]:
    """Its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listening, context, port), daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _accept(listening: socket.socket, context: ssl.SSLContext, port: int) -> None:
    while True:
        try:
            raw, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_relay, args=(raw, context, port), daemon=True).start()


def _relay(raw: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """One request or more, each answered before the next: no need to wait for both sides at once."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port)) as plain,
        raw,
        context.wrap_socket(raw, server_side=True) as secure,
    ):
        for sock in (plain, secure):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=_copy, args=(plain, secure), daemon=True)
        back.start()
        _copy(secure, plain)
        plain.shutdown(socket.SHUT_RDWR)
        back.join(5)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
