"""A simulated BMC per node (ipmi_sim): real IPMI on the upstream network, whose power-off is a power cut."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pvc.errors import Invalid
from pvc.lab import discover, inner, launch, power, render
from pvc.lab.layout import UPSTREAM, Lab, Node
from pvc.lab.network import NAMESPACES
from pvc.proc import run

IPMI_PORT = 623


def state(lab: Lab, node: Node) -> str:
    """on, off, rubbish, lies."""
    if discover.rubbish(lab, node):
        return "rubbish"
    if not discover.bmc(lab, node):
        return "off"
    return "lies" if _mark_of_a_liar(lab, node).exists() else "on"


def on(lab: Lab, node: Node) -> None:
    """Does nothing for a BMC that answers already."""
    _mark_of_a_liar(lab, node).unlink(missing_ok=True)
    if discover.bmc(lab, node):
        return
    off(lab, node)
    folder = lab.directory / "bmc"
    script = folder / "chassis"
    state = folder / f"{node.name}.state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    script.write_text(render.chassis_script(inner.command(lab, "chassis")))
    script.chmod(0o755)
    configuration = discover.bmc_configuration(lab, node)
    configuration.write_text(render.bmc(lab, node, f"{script} {node.name}"))
    emulation = folder / f"{node.name}.emu"
    emulation.write_text(render.BMC_EMULATION)
    argv = ["ipmi_sim", "-n", "-c", str(configuration), "-f", str(emulation), "-s", str(state)]
    _answer_with(lab, node, argv)


def off(lab: Lab, node: Node) -> None:
    """A dead BMC: it does not even refuse, since its address is gone too."""
    run(
        ["ip", "-n", lab.switch, "addr", "del", f"{lab.bmc_address(node)}/24", "dev", UPSTREAM.name],
        check=False,
    )
    discover.kill_and_wait([discover.bmc(lab, node), discover.rubbish(lab, node)])
    launch.forget(lab, f"bmc-{node.name}")


def rubbish(lab: Lab, node: Node) -> None:
    if not discover.rubbish(lab, node):
        off(lab, node)
        _answer_with(lab, node, inner.command(lab, "rubbish", node.name))


def lies(lab: Lab, node: Node) -> None:
    on(lab, node)
    _mark_of_a_liar(lab, node).touch()


def _mark_of_a_liar(lab: Lab, node: Node) -> Path:
    return lab.directory / "bmc" / f"{node.name}.lies"


def _answer_with(lab: Lab, node: Node, argv: Sequence[str]) -> None:
    """At the address of the BMC, in the switch."""
    run(["ip", "-n", lab.switch, "addr", "replace", f"{lab.bmc_address(node)}/24", "dev", UPSTREAM.name])
    # Not `ip netns exec`: it has its own mount namespace, where nobody would see the root of a node.
    inside = ["nsenter", f"--net={NAMESPACES / lab.switch}", *argv]
    launch.launch(lab, f"bmc-{node.name}", inside, lab.directory / "bmc" / f"{node.name}.log")


def answer_rubbish(address: str, port: int = IPMI_PORT) -> NoReturn:
    """To each datagram, noise: now and then behind what begins like an answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            asked, sender = sock.recvfrom(2048)
            noise = secrets.token_bytes(secrets.randbelow(64))
            sock.sendto(asked[: secrets.randbelow(len(asked) + 1)] + noise, sender)


def chassis(lab: Lab, node: Node, words: list[str]) -> list[str]:
    """What ipmi_sim asks of the machine: `get power`, `set power 0`, `set reset 1`, `set shutdown 1` …

    It blocks meanwhile, and ipmitool repeats itself after a second: quick, and harmless when done twice.
    """
    match words:
        case ["get", *keys]:
            return [f"{key}:{_value(lab, node, key)}" for key in keys]
        case ["set", *pairs] if len(pairs) >= 2:
            for key, value in zip(pairs[::2], pairs[1::2], strict=False):
                _set(lab, node, key, value)
            return []
        case _:
            raise Invalid(f"a chassis cannot {' '.join(words)}")


def _value(lab: Lab, node: Node, key: str) -> str:
    if key == "power":
        return str(int(power.is_on(lab, node) or bool(discover.supervisor(lab, node))))
    return "none" if key == "boot" else "0"


def _set(lab: Lab, node: Node, key: str, value: str) -> None:
    if _mark_of_a_liar(lab, node).exists():
        return
    match key, value:
        case "power", "0":
            power.off(lab, node)
        case "power", _:
            power.on(lab, node)
        case "reset", _:
            power.reset(lab, node)
        case "shutdown", _:
            power.press_button(lab, node)
        case _:
            return
