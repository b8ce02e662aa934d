"""What surrounds the server: texts of nodes, addresses."""

from __future__ import annotations

import threading

import pytest

from pvc.errors import Invalid, Unavailable
from pvc.http.serve import MOST_TEXTS, Texts, tcp_socket
from pvc.http.server import THREADS
from tests.support import eventually


def no_piece(address: str, port: int, path: str, piece: bytes | None = None) -> bytes:
    raise AssertionError(path)


def nobody(address: str, port: int, path: str) -> object:
    raise Unavailable("the node is gone")


def test_fetching_texts_leaves_threads_for_others() -> None:
    """Nodes may be slow to answer, or dead: at most half of the threads find out."""
    go_on = threading.Event()
    waits: list[int] = []

    def fetch(
        address: str, port: int, path: str, *, lines: int = 100, cursor: int | None = None, wait_s: int = 0
    ) -> tuple[str, int]:
        waits.append(wait_s)
        assert go_on.wait(10)
        return "text", 4

    texts = Texts(fetch, nobody, no_piece)
    threads = [
        threading.Thread(target=texts, args=("n1", 1, "journal"), kwargs={"wait_s": 1})
        for _ in range(MOST_TEXTS)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(waits) == MOST_TEXTS, within=5)
    with pytest.raises(Unavailable, match="too many texts"):
        texts("n1", 1, "journal")
    assert sum(waits) == MOST_TEXTS // 2  # the others are answered with what there is
    assert MOST_TEXTS < THREADS
    go_on.set()
    for thread in threads:
        thread.join()
    assert texts("n1", 1, "journal") == ("text", 4)


def test_place_is_free_again_after_a_failure() -> None:
    def fetch(
        address: str, port: int, path: str, *, lines: int = 100, cursor: int | None = None, wait_s: int = 0
    ) -> tuple[str, int]:
        raise Unavailable("the node is gone")

    texts = Texts(fetch, nobody, no_piece)
    for _ in range(MOST_TEXTS + 1):
        with pytest.raises(Unavailable, match="gone"):
            texts("n1", 1, "journal")
        with pytest.raises(Unavailable, match="gone"):
            texts.ask("n1", 1, "filters/101")


@pytest.mark.parametrize(
    "address", ["", "7370", ":7370", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:-1"]
)
def test_bad_address_to_listen_on(address: str) -> None:
    with pytest.raises(Invalid, match=r"api\.listen"):
        tcp_socket(address)


@pytest.mark.parametrize("address", ["192.0.2.250:7370", "[2001:db8::250]:7370"])
def test_listens_on_an_address_that_comes_later(address: str) -> None:
    tcp_socket(address).close()
