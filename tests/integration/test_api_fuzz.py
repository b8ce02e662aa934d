"""The API asked from its own description, with what that allows and what not: never a 5xx."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.node import NodeSpec
from pvc.cluster.store import Create
from pvc.commands.registry import every_operation
from pvc.http import openapi
from pvc.http.client import HttpTransport
from tests.fakes.serving import Serving, serving

EXAMPLES = int(os.environ.get("PVC_FUZZ_EXAMPLES", "15"))
"""Of each operation and mode."""
KNOWN = {"vm": "web1", "node": "n1", "name": "ci"}
"""Objects that exist at the start; half of the requests are about them."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("api"), operations=list(every_operation())) as one:
        one.store.commit(
            Create(paths.node("n1"), dumps(NodeSpec("n1", "127.0.0.1", "127.0.0.1"))),
            Create(paths.node_vms("n1")),
        )
        transport = HttpTransport(one.path)
        transport.call("vm.create", {"name": "web1", "memory": "512"})
        transport.call("api.token-add", {"name": "ci", "role": "read"})
        transport.close()
        yield one


OPERATIONS = {found.name: found for found in every_operation() if not found.is_local}
SCHEMA = schemathesis.openapi.from_dict(openapi.document(OPERATIONS.values()))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(name: str, mode: GenerationMode, served: Serving) -> None:
    found = OPERATIONS[name]
    chance = random.Random(1)

    @given(SCHEMA[found.path][found.method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and chance.random() < 0.5:
            known = {
                parameter: KNOWN.get(parameter, value) for parameter, value in case.path_parameters.items()
            }
            case.path_parameters.update(known)
        case.call_and_validate(
            base_url=f"{served.url}/api/v1",
            headers={"Authorization": f"Bearer {served.keys['admin']}"},
            checks=CHECKS,
        )

    ask()


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_answers_without_a_token(name: str, served: Serving) -> None:
    found = OPERATIONS[name]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    path = re.sub(r"{(\w+)}", lambda match: KNOWN.get(match[1], "on"), found.path)
    connection.request(found.method, f"/api/v1{path}")
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]) == (401, "unauthenticated")
    connection.close()
