"""A simulated BMC per node (ipmi_sim): real IPMI on the upstream network, whose power-off is a power cut."""

from __future__ import annotations

import shutil

from pvc.errors import Invalid
from pvc.lab import discover, inner, launch, power, render
from pvc.lab.layout import UPSTREAM, Lab, Node
from pvc.lab.network import NAMESPACES
from pvc.proc import run


def on(lab: Lab, node: Node) -> None:
    """Does nothing for a BMC that answers already."""
    if discover.bmc(lab, node):
        return
    run(["ip", "-n", lab.switch, "addr", "replace", f"{lab.bmc_address(node)}/24", "dev", UPSTREAM.name])
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
    # Not `ip netns exec`: it has its own mount namespace, where nobody would see the root of a node.
    argv = ["nsenter", f"--net={NAMESPACES / lab.switch}", "ipmi_sim", "-n"]
    argv += ["-c", str(configuration), "-f", str(emulation), "-s", str(state)]
    launch.launch(lab, f"bmc-{node.name}", argv, folder / f"{node.name}.log")


def off(lab: Lab, node: Node) -> None:
    """A dead BMC: it does not even refuse, since its address is gone too."""
    run(
        ["ip", "-n", lab.switch, "addr", "del", f"{lab.bmc_address(node)}/24", "dev", UPSTREAM.name],
        check=False,
    )
    discover.kill_and_wait([discover.bmc(lab, node)])
    launch.forget(lab, f"bmc-{node.name}")


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
