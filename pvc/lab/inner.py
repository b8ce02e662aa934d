"""What the lab starts by itself and no user types: the supervisor of a node, the chassis behind a BMC, and
what answers in place of a BMC that is mad.

They run from the lab's own copy of pvc, whose path in the command line says which lab they belong to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pvc
from pvc.errors import Failed, Invalid, PVCError
from pvc.lab.layout import Lab, load

START = "import sys; sys.path.insert(0, sys.argv[1] + '{}'); from pvc.lab.inner import main; sys.exit(main())"


def command(lab: Lab, *words: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-c", START.format(_inside_program()), str(lab.program), *words]


def _inside_program() -> str:
    """Where in the program's file this package is: "/site-packages", or "" for its top."""
    return next((str(pvc.__path__[0])[len(name) : -len("/pvc")] for name in _archives() if name), "")


def _archives() -> list[str]:
    """The packed file this package was loaded from, if it was."""
    return [str(parent) for parent in Path(pvc.__path__[0]).parents if parent.is_file()]


def main() -> int:
    program, *words = sys.argv[1:]
    try:
        lab = load(Path(program).parent)
        if lab is None:
            raise Failed(f"there is no lab in {Path(program).parent}")
        return _serve(lab, words)
    except PVCError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code


def _serve(lab: Lab, words: Sequence[str]) -> int:
    match list(words):
        case ["supervise", name]:
            from pvc.lab.supervise import supervise

            return supervise(lab, lab.node(name))
        case ["chassis", name, *question]:
            from pvc.lab.bmc import chassis

            sys.stdout.write("".join(f"{line}\n" for line in chassis(lab, lab.node(name), question)))
            return 0
        case ["rubbish", name]:
            from pvc.lab.bmc import answer_rubbish

            answer_rubbish(lab.bmc_address(lab.node(name)))
    raise Invalid(f"nothing is called {' '.join(words)}")
