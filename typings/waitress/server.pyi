import socket
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.task import ThreadedTaskDispatcher

class BaseWSGIServer:
    channel_class: type[HTTPChannel]
    application: Callable[..., Any]
    effective_host: str
    effective_port: str
    active_channels: dict[int, Any]
    def __init__(
        self,
        application: Callable[..., Any],
        map: dict[int, Any] | None = None,
        _start: bool = True,
        _sock: socket.socket | None = None,
        dispatcher: ThreadedTaskDispatcher | None = None,
        adj: Adjustments | None = None,
        sockinfo: tuple[Any, ...] | None = None,
        bind_socket: bool = True,
    ) -> None: ...
    def pull_trigger(self) -> None: ...
    def accept(self) -> tuple[socket.socket, Any] | None: ...

class TcpWSGIServer(BaseWSGIServer): ...
class UnixWSGIServer(BaseWSGIServer): ...
