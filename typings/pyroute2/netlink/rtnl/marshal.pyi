from collections.abc import Iterable
from typing import Any

class MarshalRtnl:
    def parse(self, data: bytes) -> Iterable[Any]: ...
