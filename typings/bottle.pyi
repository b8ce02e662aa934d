from collections.abc import Callable, Iterable
from typing import Any

class Bottle:
    default_error_handler: Callable[[HTTPError], bytes]
    def route(self, path: str, method: str, callback: Callable[..., Any]) -> Any: ...
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]: ...

class _Request:
    environ: dict[str, Any]
    method: str
    path: str

class _Response:
    def set_header(self, name: str, value: str) -> None: ...
    def get_header(self, name: str) -> str | None: ...

class HTTPResponse(_Response):
    status_code: int
    body: Any
    def __init__(self, body: Any, status: int, headers: dict[str, str]) -> None: ...
    def apply(self, other: _Response) -> None: ...

class HTTPError(HTTPResponse):
    exception: BaseException | None

request: _Request
response: _Response
