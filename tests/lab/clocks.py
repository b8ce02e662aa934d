"""Wall clocks that are wrong, of one node's daemons only: nodes of a lab share the clock of one kernel.

Not by libfaketime: where it leaves the monotonic clock alone, 0.9.10 (Debian 12) breaks Python's time.sleep.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.labs import RunningLab

SOURCE = Path(__file__).with_name("wrong_clock.c")
DAEMONS = ("pvc-node", "pvc-api")


@contextmanager
def wrong_clock(lab: RunningLab, node: str, offset_s: int) -> Iterator[None]:
    """The daemons are started again before and after; what they start themselves has their clock."""
    library = lab.layout.share / f"{SOURCE.stem}.so"
    if not library.exists():
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    environment = f"LD_PRELOAD=/srv/share/{library.name} CLOCK_OFFSET_S={offset_s}"
    folders = [f"/run/systemd/system/{unit}.service.d" for unit in DAEMONS]
    restart = f"systemctl daemon-reload && systemctl restart {' '.join(DAEMONS)}"
    write = "".join(
        f"mkdir -p {folder} && echo '[Service]\nEnvironment={environment}' >{folder}/clock.conf && "
        for folder in folders
    )
    lab.sh(node, write + restart)
    try:
        yield
    finally:
        lab.sh(node, f"rm -r {' '.join(folders)}; {restart}")
