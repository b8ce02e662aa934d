"""argv → operation: finds the verb, parses what it takes, carries it out and shows the result.

Only what the command needs is imported: `pvc --help` reads the table of nouns, `pvc vm --help` the module of
one noun, and the parser is built for the chosen verb alone.
"""

from __future__ import annotations

import os
import sys

from pvc import output
from pvc.commands import FLAG_VERBS, NOUNS, typed_verbs, verbs_of
from pvc.errors import EXIT_INTERRUPTED, Failed, Invalid

TYPE_CHECKING = False  # importing typing is not worth its time in `pvc --help`
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from pvc.commands.context import LocalContext, Transport
    from pvc.commands.registry import Operation

    Pick = Callable[[Mapping[str, Any]], Transport]

debugging = False
"""--debug was given: errors come with their traceback."""

# Flags, name, placeholder of the value (empty: a switch), help
GLOBALS: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (("-c", "--connection"), "connection", "NAME", "the cluster to talk to (PVC_CONNECTION)"),
    (("--direct",), "direct", "", "talk to ZooKeeper instead of an API server; only on a node"),
    (("-f", "--format"), "format", "FORMAT", f"{', '.join(output.FORMATS)}; table unless told"),
    (("-q", "--quiet"), "quiet", "", "no notes and no progress (PVC_QUIET)"),
    (("-s", "--silent"), "silent", "", "print nothing but errors; the exit code tells"),
    (("-v", "--debug"), "debug", "", "show what is done, and tracebacks (PVC_DEBUG)"),
    (("-u", "--unsafe"), "unsafe", "", "never ask for confirmation (PVC_UNSAFE)"),
    (("--colour", "--color"), "colour", "", "colours even when the output is no terminal"),
    (("--no-colour", "--no-color"), "no_colour", "", "no colours (NO_COLOR)"),
    (("-h", "--help"), "help", "", "what a noun or a verb is for and takes"),
    (("--version",), "version", "", "of this program; with --verbose what it is built from"),
)

OVERRIDABLE = frozenset({"-f", "-s"})
"""Short globals that a verb may use for itself; before the verb they still mean the global."""

FIRST = frozenset({"list", "info", "status"})
"""Verbs that help lists before the others: what one looks for first."""

NOUN_ALIASES: dict[str, tuple[str, ...]] = {"status": ("cluster", "status")}

EXIT_CODES = (
    "0 done, 1 failed or declined, 2 usage, 3 not found, 4 conflict or wrong state, 5 cluster unavailable,\n"
    "6 not permitted, 7 gave up waiting, 70 bug in pvc, 130 interrupted"
)


def run(argv: Sequence[str], pick: Pick | None = None) -> int:
    """Do what the command line says; `pick` replaces the choice of the transport (tests)."""
    if argv and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    leading, words, rest = split(argv)
    if "--version" in leading or (not words and "--version" in rest):
        output.emit(version(verbose="--verbose" in rest))
        return 0
    wants_help = "--help" in leading
    if not words:
        if wants_help:
            output.emit(overview())
            return 0
        _refuse_rest(rest, "pvc", list(NOUNS))
        raise Invalid(
            "say what to do: pvc NOUN VERB", hint=f"nouns: {', '.join(NOUNS)}; more with pvc --help"
        )
    found, prefix, rest = resolve(words, rest)
    if found is None:
        if wants_help or any(word in ("-h", "--help") for word in rest):
            output.emit(noun_help(prefix))
            return 0
        verbs = _verbs(prefix)
        _refuse_rest(rest, f"pvc {' '.join(prefix)}", verbs)
        raise Invalid(f"pvc {' '.join(prefix)} needs a verb", hint=f"one of: {', '.join(verbs)}")
    return Command(found, [*leading, *rest], pick).run()


# Finding the verb


def split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Leading global options in their long form, the words up to the next option, the rest."""
    known = {
        flag: (flags[-1] if len(flags[-1]) > 2 else flag, bool(value))
        for flags, _, value, _ in GLOBALS
        for flag in flags
    }
    leading: list[str] = []
    words: list[str] = []
    index = 0
    while index < len(argv):
        token = argv[index]
        flag, equals, value = token.partition("=")
        if not token.startswith("-") or token == "-":
            break
        if flag in known and (known[flag][1] or not equals):
            long, takes = known[flag]
            if takes and not equals:
                index += 1
                if index == len(argv):
                    raise Invalid(f"{flag} needs a value", hint="pvc --help")
                value = argv[index]
            leading.append(f"{long}={value}" if takes else long)
        elif token[:2] in known and len(token) > 2 and token[1] != "-":
            leading += _bundle(token, known)
        else:
            break
        index += 1
    while index < len(argv) and not argv[index].startswith("-"):
        words.append(argv[index])
        index += 1
    return leading, words, list(argv[index:])


def _bundle(token: str, known: Mapping[str, tuple[str, bool]]) -> list[str]:
    """`-qc NAME` is not offered, `-qv` and `-cNAME` are."""
    long, takes = known[token[:2]]
    if takes:
        return [f"{long}={token[2:]}"]
    unknown = next((letter for letter in token[1:] if known.get(f"-{letter}", ("", True))[1]), "")
    if unknown:
        raise Invalid(f"pvc has no option -{unknown} here", hint="pvc --help")
    return [known[f"-{letter}"][0] for letter in token[1:]]


def resolve(words: Sequence[str], rest: list[str]) -> tuple[Operation | None, list[str], list[str]]:
    """The operation that the words name; or None and the noun (and first word of a verb) they name; the rest.

    A global option may stand between noun and verb (`pvc vm -q list`): then the words go on after it.
    """
    noun = words[0]
    if noun not in NOUNS:
        raise _unknown(f"pvc has no noun {noun}", noun, NOUNS, "pvc --help lists them")
    given = list(words[1:])
    if noun in NOUN_ALIASES:
        noun, *verb = NOUN_ALIASES[noun]
        given = [*verb, *given]
    verbs = verbs_of(noun)
    between: list[str] = []
    while True:
        for count in (3, 2, 1):
            named = " ".join(given[:count])
            if named in verbs and len(given) >= count:
                return _by_option(noun, named, [*between, *given[count:], *rest])
        _check_group(noun, given)
        leading, more, after = split(rest)
        if not more:
            return None, [noun, *given], [*between, *leading, *after]
        between += leading
        given += more
        rest = after


def _check_group(noun: str, given: Sequence[str]) -> None:
    """Raises Invalid unless verbs begin with these words."""
    for place, word in enumerate(given):
        group = [noun, *given[:place]]
        rest = _verbs(group)
        known = {verb.partition(" ")[0] for verb in rest}
        if word not in known:
            hint = f"one of: {', '.join(sorted(rest))}" if place else f"pvc {noun} --help lists them"
            raise _unknown(f"pvc {' '.join(group)} has no verb {word}", word, known, hint)


def _by_option(noun: str, verb: str, rest: list[str]) -> tuple[Operation, list[str], list[str]]:
    """An option may make another verb of it."""
    for (of_noun, of_verb, option), (other, *implied) in FLAG_VERBS.items():
        if (of_noun, of_verb) == (noun, verb) and option in rest:
            left = [word for word in rest if word != option]
            return _operation(noun, other), [], [*left, *implied]
    return _operation(noun, verb), [], rest


def _operation(noun: str, verb: str) -> Operation:
    from pvc.commands.registry import find, named

    return find(named(noun, verb))


def _unknown(message: str, given: str, known: Iterable[str], otherwise: str) -> Invalid:
    import difflib

    near = difflib.get_close_matches(given, sorted(known), n=2, cutoff=0.5)
    return Invalid(message, hint=f"did you mean {' or '.join(near)}?" if near else otherwise)


def _refuse_rest(rest: Sequence[str], where: str, known: Iterable[str]) -> None:
    options = [word for word in rest if word.startswith("-") and word not in ("-h", "--help")]
    if options:
        raise Invalid(
            f"{where} has no option {options[0].partition('=')[0]}",
            hint=f"options of a verb come after it; {where} --help",
        )


def _verbs(prefix: Sequence[str]) -> list[str]:
    """What may follow `pvc vm` or `pvc vm tag`."""
    start = "".join(f"{word} " for word in prefix[1:])
    return [verb.removeprefix(start) for verb in typed_verbs(prefix[0]) if verb.startswith(start)]


# Help


def overview() -> str:
    lines = [
        "pvc: Parallel Virtual Cluster, a private cloud of KVM virtual machines",
        "",
        "usage: pvc NOUN VERB [arguments] [options]",
        "",
        *_listed(NOUNS),
        "",
        "Options of every verb:",
        *_global_lines(),
        "",
        "pvc NOUN --help lists the verbs of a noun, pvc NOUN VERB --help tells what one takes.",
        "Changes take --plan (say what would happen, change nothing); most take --wait.",
        "Exit codes: " + EXIT_CODES.replace("\n", "\n  "),
    ]
    return "\n".join(lines)


def noun_help(prefix: Sequence[str]) -> str:
    noun, *group = prefix
    name = " ".join(["pvc", *prefix])
    verbs = sorted(_verbs(prefix), key=lambda verb: (verb not in FIRST, verb))
    return "\n".join(
        [
            f"{name}: {NOUNS.get(noun, noun)}",
            "",
            f"usage: {name} VERB [arguments] [options]",
            "",
            *_listed({verb: _operation(noun, " ".join([*group, verb])).help for verb in verbs}),
            "",
            f"{name} VERB --help tells what a verb takes; pvc --help lists the options of every verb.",
        ]
    )


def _listed(entries: Mapping[str, str]) -> list[str]:
    width = max((len(name) for name in entries), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in entries.items()]


def _global_lines() -> list[str]:
    shown = {", ".join(flags) + (f" {value}" if value else ""): text for flags, _, value, text in GLOBALS}
    return _listed(shown)


def version(*, verbose: bool) -> str:
    from pvc import __version__

    if not verbose:
        return f"pvc {__version__}"
    from pvc._build import COMMIT, DEPENDENCIES

    lines = [f"pvc {__version__}", f"commit: {COMMIT}", f"python: {sys.version.split()[0]}"]
    return "\n".join([*lines, *(f"bundled: {name} {number}" for name, number in DEPENDENCIES.items())])


# The verb


class Command:
    """One verb with what it was given."""

    def __init__(self, found: Operation, argv: Sequence[str], pick: Pick | None = None) -> None:
        from pvc.parser import parse

        self.found = found
        self.help, self.given, self.options = parse(found, argv)
        self.pick = pick
        self._transport: Transport | None = None

    def run(self) -> int:
        if self.help:
            output.emit(self.help)
            return 0
        if self.options.get("version"):
            output.emit(version(verbose=False))
            return 0
        self._settle_options()
        try:
            return self._run()
        finally:
            if self._transport is not None:
                self._transport.close()

    def _settle_options(self) -> None:
        global debugging
        options = self.options
        for name in ("quiet", "debug", "unsafe"):
            options[name] = bool(options.get(name)) or _is_set(f"PVC_{name.upper()}")
        options["connection"] = options.get("connection") or os.environ.get("PVC_CONNECTION", "")
        debugging = options["debug"]
        output.screen.quiet = options["quiet"]
        output.screen.silent = bool(options.get("silent"))
        output.screen.colour = True if options.get("colour") else False if options.get("no_colour") else None
        if options["debug"]:
            from pvc.log import setup

            setup(daemon=False, debug=True)
        options["format"] = options.get("format", "table")
        if options["format"] not in output.FORMATS:
            raise Invalid(
                f"there is no format {options['format']}", hint=f"one of: {', '.join(output.FORMATS)}"
            )

    def _run(self) -> int:
        from pvc.commands.registry import convert

        arguments = convert(self.found, self.given)
        planning = bool(self.options.get("plan"))
        if self.found.confirm and not planning and not self._confirmed(arguments):
            output.error("pvc: declined, nothing was changed")
            return Failed.exit_code
        if self.found.is_local:
            return self._run_local(arguments)
        if self.options.get("watch"):
            from pvc.waiting import watch

            return watch(self._connected(), self.found.name, self.given, self._text)
        result = self._connected().call(self.found.name, self.given, plan=planning)
        if getattr(self._transport, "stale", False):
            output.note("pvc: the API server has lost the cluster's store, so this may be old")
        if planning:
            output.emit(output.plan(result, format=self.options["format"]))
            return 0
        if self.found.waits and self._waits():
            return self._wait(result)
        self._show(result)
        return 0

    def _show(self, result: Any) -> None:
        """Of a change people want to hear how it stands; the whole object is for `-f long` and programs."""
        if isinstance(result, bytes):
            output.emit_bytes(result)
            return
        if (
            not self.found.is_read
            and self.options["format"] in ("table", "pretty")
            and "columns" not in self.options
        ):
            if result is None:
                output.note(output.done(self.found.done, self.given))
                return
            if isinstance(result, dict) and not result.get("goal") and self.found.done:
                # The name of a task says nothing to whoever asked for something else.
                said = {**result, **self.given} if self.found.is_task else {**self.given, **result}
                output.emit(output.done(self.found.done, said))
                return
            if isinstance(result, dict) and "name" in result and result.keys() & {"state", "domain_state"}:
                output.emit(output.sentence(result))
                return
        text = self._text(result)
        file = self.options.get("file")
        if file is None:
            output.emit(text)
        else:
            output.write_file(file, text)

    def _confirmed(self, arguments: Mapping[str, Any]) -> bool:
        if self.options.get("yes") or self.options["unsafe"]:
            return True
        question = self.found.confirm.format_map(arguments)
        if not sys.stdin.isatty():
            raise Invalid(
                f"there is no terminal to ask: pvc {self.found.noun} {self.found.verb} needs --yes",
                hint=f"the question is: {question}",
            )
        return output.ask(question)

    def _run_local(self, arguments: Mapping[str, Any]) -> int:
        result = self.found.function(self._local_context(), **arguments)
        if isinstance(result, int) and not isinstance(result, bool):
            return result  # exit code of what it ran
        if result is not None:
            from pvc.cluster.codec import to_json

            output.emit(self._text(to_json(result)))
        return 0

    def _local_context(self) -> LocalContext:
        from pvc.commands.context import LocalContext

        return LocalContext(
            connect=self._connected,
            unsafe=bool(self.options["unsafe"] or self.options.get("yes")),
            quiet=self.options["quiet"],
            wait_timeout_s=self.options.get("timeout"),
            options=self.options,
        )

    def _connected(self) -> Transport:
        if self._transport is None:
            self._transport = (self.pick or pick_transport)(self.options)
        return self._transport

    def _text(self, result: Any) -> str:
        from pvc.parser import columns

        return output.render(
            result,
            format=self.options["format"],
            columns=columns(self.found),
            chosen=[name for name in self.options.get("columns", "").split(",") if name],
            sort=self.options.get("sort", ""),
        )

    # Waiting

    def _waits(self) -> bool:
        return bool(self.options.get("wait", "timeout" in self.options or self.found.is_task))

    def _wait(self, result: Any) -> int:
        from pvc.waiting import wait

        goal = result.get("goal") if isinstance(result, dict) else None
        if not goal:
            self._show(result)
            return 0
        shown = self._shown_by(result)
        noun, _, verb = self.found.waits.partition(".")
        name = next(iter(shown.values()), "") if "name" not in result else result["name"]
        again = " ".join(f"pvc {noun} {verb} {name} --watch".split())
        try:
            last = wait(
                self._connected(),
                self.found.waits,
                shown,
                goal,
                timeout_s=self.options.get("timeout"),
                again=again,
            )
        except KeyboardInterrupt:
            output.error(f"pvc: no longer waiting, it goes on; to see how: {again}")
            return EXIT_INTERRUPTED
        left = None if self.found.done else goal
        self._show({**result, **{key: last[key] for key in last if key in result}, "goal": left})
        return 0

    def _shown_by(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the operation that shows what was set in motion: by UUID, which no rename changes."""
        from pvc.commands.registry import find

        shows = find(self.found.waits)
        first = next((param for param in shows.params if param.positional), None)
        if first is None:
            return {}
        value = result.get("uuid") or result.get("name") or self.given.get(first.name)
        return {} if value is None else {first.name: value}


def pick_transport(options: Mapping[str, Any]) -> Transport:
    if options.get("direct"):
        if options.get("connection"):
            raise Invalid("--direct and --connection exclude each other", hint="leave one of them out")
        from pvc.commands.direct import DirectTransport
        from pvc.log import setup

        # The store tells in one error what its library would tell in a dozen warnings.
        setup(daemon=False, debug=debugging)
        return DirectTransport()
    from pvc.commands.connection import pick

    return pick(options.get("connection") or "")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")
