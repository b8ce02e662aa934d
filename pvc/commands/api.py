"""The API server, and the tokens that open it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pvc.cluster import paths, tokens
from pvc.cluster.store import Create, Delete
from pvc.cluster.tokens import Token
from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, Role, every_operation, local, operation
from pvc.errors import Conflict, NotFound

TokenName = Annotated[
    str,
    Arg(
        "what the token is called: who uses it",
        metavar="NAME",
        complete="token",
        pattern=tokens.NAME_PATTERN,
        what="a token's name: up to 63 lower-case letters, digits and dashes",
    ),
]
Duration = Annotated[
    str,
    Arg(
        "how long it is valid, like 12h, 30d, 52w; for ever unless given",
        metavar="TIME",
        pattern=r"[1-9]\d{0,3}[mhdw]",
        what="a time like 30m, 12h, 30d or 52w",
    ),
]
SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class TokenInfo:
    name: str
    role: str
    created_at: float
    expires_at: float | None
    """None: never."""
    expired: bool


@dataclass(frozen=True, slots=True)
class NewToken:
    name: str
    role: str
    expires_at: float | None
    token: str
    """Told this once; the cluster keeps only its hash."""


@operation("POST", "/token", verb="token add", role=Role.ADMIN)
def token_add(
    ctx: Context,
    name: TokenName,
    *,
    role: Annotated[Role, Arg("what it may do; each role includes the ones before it")],
    expires: Duration | None = None,
) -> NewToken:
    """Make a token for the API and show it, this once."""
    now = ctx.clock.wall()
    until = None if expires is None else now + int(expires[:-1]) * SECONDS[expires[-1]]
    if ctx.reader.get(paths.token(name)) is not None:
        raise Conflict(f"there is a token {name} already", hint=f"pvc api token remove {name}")
    token, text = tokens.make(name, role, now, until)
    ctx.say(f"a token {name} with the role {role} would be made")
    ctx.commit(Create(paths.token(name), tokens.document(token)))
    return NewToken(name, role, until, text)


@operation("GET", "/token", verb="token list")
def token_list(ctx: Context) -> list[TokenInfo]:
    """List the tokens: who may do what until when."""
    now = ctx.clock.wall()
    return [_info(token, now) for token in tokens.every(ctx.reader)]


@operation(
    "DELETE",
    "/token/{name}",
    verb="token remove",
    role=Role.ADMIN,
    confirm="Remove the token {name} for good?",
    done="the token {name} opens nothing any more",
)
def token_remove(ctx: Context, name: TokenName) -> TokenInfo:
    """Remove a token: from then on it opens nothing."""
    found = tokens.find(ctx.reader, name)
    if found is None:
        raise NotFound(f"no token named {name}", hint="pvc api token list shows them")
    token, version = found
    ctx.say(f"the token {name} with the role {token.role} would open nothing any more")
    ctx.commit(Delete(paths.token(name), version))
    return _info(token, ctx.clock.wall())


def _info(token: Token, now: float) -> TokenInfo:
    expired = token.expires is not None and now >= token.expires
    return TokenInfo(token.name, token.role, token.created, token.expires, expired)


@local()
def serve(ctx: LocalContext) -> None:
    """Serve the API of this node's cluster in the foreground, as its service does."""
    from pvc import config, log
    from pvc.http.serve import serve as run

    log.setup(daemon=True, debug=bool(ctx.options.get("debug")))
    run(config.load())


@local()
def openapi(ctx: LocalContext) -> Any:
    """Print the description of the API (OpenAPI 3.1), as /api/v1/openapi.json has it."""
    import json

    from pvc.http.openapi import document

    described = document(every_operation())
    if str(ctx.options.get("format", "")).startswith("json"):
        return described
    return json.dumps(described, indent=2)
