from socket import socket as Socket
from typing import Any

from waitress.task import ErrorTask, WSGITask

class HTTPChannel:
    task_class: type[WSGITask]
    error_task_class: type[ErrorTask]
    connected: bool
    socket: Socket
    server: Any
    def __init__(
        self, server: Any, sock: Socket, addr: Any, adj: Any, map: dict[int, Any] | None = None
    ) -> None: ...
    def service(self) -> None: ...
    def handle_close(self) -> None: ...
