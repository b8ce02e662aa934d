"""Completion of the command line in a shell: a small script that asks this program what may come next."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pvc.commands import NOUNS, typed_verbs, verbs_of
from pvc.commands.context import LocalContext
from pvc.commands.registry import Arg, Operation, Param, find, local, named
from pvc.errors import PVCError

WITHIN_S = 1.0
"""For names of live objects; a shell that hangs is worse than no completion."""

PLAIN = re.compile(r"[\w.:/=@,+~-]+")
"""Only such words are offered: a shell might evaluate others."""

NAMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vm": ("vm.list", "name", ()),
    "vm-snapshot": ("vm.snapshot-list", "name", ("vm",)),
    "node": ("node.list", "name", ()),
    "network": ("network.list", "vni", ()),
    "token": ("api.token-list", "name", ()),
    "task": ("task.list", "name", ()),
    "pool": ("storage.pool-list", "name", ()),
    "volume": ("storage.volume-list", "name", ("pool",)),
    "volume-snapshot": ("storage.volume-snapshot-list", "name", ("pool", "volume")),
    "osd": ("storage.osd-list", "id", ()),
}
"""Kind → the operation that lists them, the field with the name, what it is given of the arguments before."""

BASH = """\
# completion of pvc for bash:  source <(pvc completion bash)
_pvc() {
    mapfile -t COMPREPLY < <(pvc completion complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _pvc pvc
"""
ZSH = """\
#compdef pvc
# completion of pvc for zsh:  source <(pvc completion zsh)
_pvc() {
    local -a found
    found=("${(@f)$(pvc completion complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -Q -- $found; else _files; fi
}
compdef _pvc pvc
"""
FISH = """\
# completion of pvc for fish:  pvc completion fish | source
complete -c pvc -f -a '(pvc completion complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
"""


@local()
def bash(ctx: LocalContext) -> str:
    """Print the completion for bash: source <(pvc completion bash)."""
    return BASH


@local()
def zsh(ctx: LocalContext) -> str:
    """Print the completion for zsh: source <(pvc completion zsh)."""
    return ZSH


@local()
def fish(ctx: LocalContext) -> str:
    """Print the completion for fish: pvc completion fish | source."""
    return FISH


@local()
def complete(
    ctx: LocalContext,
    words: Annotated[
        tuple[str, ...], Arg("the words after pvc; the last is to be completed", metavar="COMMAND")
    ],
) -> str:
    """Print what may come next; the scripts of the shells call it."""
    given = [word for word in (words[1:] if words[:1] == ("--",) else words) if word != "="]
    if words[-1:] == ("=",):
        given.append("")
    *before, current = given or [""]
    found = candidates(before, current)
    return "".join(f"{word}\n" for word in sorted(found) if PLAIN.fullmatch(word))


def candidates(before: Sequence[str], current: str) -> set[str]:
    """What starts with `current` and may follow these words."""
    try:
        found = set(_following(before, current))
    except PVCError:
        # A line that is wrong already, or a cluster that does not answer: there is nothing to offer.
        return set()
    return {word for word in found if word.startswith(current)}


def _following(before: Sequence[str], current: str) -> Iterable[str]:
    from pvc.cli import GLOBALS, NOUN_ALIASES, split

    takes = {flag: dest for flags, dest, value, _ in GLOBALS if value for flag in flags}
    every_global = [flag for flags, _, _, _ in GLOBALS for flag in flags]
    if before and before[-1] in takes and not _verb_of(before[:-1]):
        return _of_global(takes[before[-1]])
    _, words, rest = split(before)
    if not words:
        return every_global if current.startswith("-") else NOUNS
    if words[0] in NOUN_ALIASES:
        words = [*NOUN_ALIASES[words[0]], *words[1:]]
    if words[0] not in NOUNS:
        return ()
    verbs = verbs_of(words[0])
    for count in (3, 2, 1):
        verb = " ".join(words[1 : 1 + count])
        if verb in verbs and len(words) > count:
            found = find(named(words[0], verb))
            return _of_verb(found, [*words[1 + count :], *rest], current, before)
    if rest:
        return ()
    start = "".join(f"{word} " for word in words[1:])
    if current.startswith("-"):
        return every_global
    typed = typed_verbs(words[0])
    return {verb.removeprefix(start).partition(" ")[0] for verb in typed if verb.startswith(start)}


def _verb_of(before: Sequence[str]) -> bool:
    """Whether these words reach a verb, whose own options then come first."""
    from pvc.cli import split

    return len(split(before)[1]) > 1


def _of_global(name: str) -> Iterable[str]:
    if name == "format":
        from pvc.output import FORMATS

        return FORMATS
    return _connections() if name == "connection" else ()


def _of_verb(found: Operation, given: Sequence[str], current: str, before: Sequence[str]) -> Iterable[str]:
    from pvc.cli import GLOBALS
    from pvc.parser import automatic, flags

    options: dict[str, Param | None] = {
        flag: param for param in found.params if not param.positional for flag in flags(param)
    }
    valued = {
        flag for flag, param in options.items() if param and param.kind is not bool and not param.arg.switches
    }
    for short, long, settings in automatic(found):
        new = [flag for flag in (short, long) if flag and flag not in options]
        options.update(dict.fromkeys(new))
        valued |= {flag for flag in new if "metavar" in settings}
    of_globals = {
        flag: (dest, value) for spelled, dest, value, _ in GLOBALS for flag in spelled if flag not in options
    }
    valued |= {flag for flag, (_, value) in of_globals.items() if value}
    positional, said = [param for param in found.params if param.positional], _arguments(given, valued)
    known = {param.name: word for param, word in zip(positional, said, strict=False)}
    last = given[-1] if given else ""
    if last in valued:
        param = options.get(last)
        if param is not None:
            return _values(param, known, before, current)
        return _of_global(of_globals[last][0]) if last in of_globals else ()
    if current.startswith("-"):
        return [*options, *of_globals]
    if len(said) < len(positional):
        return _values(positional[len(said)], known, before, current)
    return _values(positional[-1], known, before, current) if positional and positional[-1].many else ()


def _arguments(given: Sequence[str], valued: set[str]) -> list[str]:
    """Those that are neither options nor their values."""
    found: list[str] = []
    skip = False
    for word in given:
        if skip:
            skip = False
        elif word.startswith("-") and word != "-":
            skip = word in valued
        else:
            found.append(word)
    return found


# Values


def _values(param: Param, known: Mapping[str, str], before: Sequence[str], current: str) -> Iterable[str]:
    """`known`: the arguments that the line has already."""
    if param.choices:
        return param.choices
    if param.arg.file or param.arg.complete == "file":
        return _paths(current)
    if param.arg.complete == "connection":
        return _connections()
    return _live(param.arg.complete, known, before)


def _paths(current: str) -> list[str]:
    found = glob.glob(glob.escape(os.path.expanduser(current)) + "*")
    return [path + "/" if os.path.isdir(path) else path for path in found]


def _connections() -> list[str]:
    from pvc.commands import connection

    return [shown.name for shown in connection.list_(LocalContext(connect=_nothing))]


def _nothing() -> Any:
    raise AssertionError("the names of connections need no cluster")


def _live(kind: str, known: Mapping[str, str], before: Sequence[str]) -> Iterable[str]:
    """Names of objects of the cluster that the line is about."""
    if kind == "tag":
        return {_tag_name(tag) for vm in _asked("vm.list", {}, before) for tag in vm.get("tags", ())}
    if kind not in NAMES:
        return ()
    name, field, needed = NAMES[kind]
    if not known.keys() >= set(needed):
        return ()
    return [str(row[field]) for row in _asked(name, {one: known[one] for one in needed}, before)]


def _asked(name: str, arguments: Mapping[str, str], before: Sequence[str]) -> Any:
    from pvc.commands.connection import pick

    transport = pick(_chosen(before), timeout_s=WITHIN_S)
    try:
        return transport.call(name, arguments)
    finally:
        transport.close()


def _tag_name(tag: Any) -> str:
    return str(tag["name"] if isinstance(tag, dict) else tag)


def _chosen(before: Sequence[str]) -> str:
    """The connection that the line or the environment names."""
    for flag, value in pairwise(before):
        if flag in ("-c", "--connection"):
            return value
    return os.environ.get("PVC_CONNECTION", "")
