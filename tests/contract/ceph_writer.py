"""A client of Ceph that writes numbers one after another, until it is refused: see test_blocklist.py."""

from __future__ import annotations

import sys
from itertools import count

import rados


def main(conf: str) -> None:
    cluster = rados.Rados(conffile=conf, name="client.admin")
    cluster.connect()
    pool = cluster.open_ioctx("vms")
    try:
        for number in count():
            pool.write_full("disk", f"old {number}".encode())
            if number == 0:
                print(cluster.get_addrs(), flush=True)
    except rados.Error as error:
        print(f"refused: {error.errno}", flush=True)


main(sys.argv[1])
