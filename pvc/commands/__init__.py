"""What pvc can do: one typed function is one operation. This table imports nothing, so that help is fast."""

NOUNS: dict[str, str] = {
    "vm": "virtual machines",
    "node": "the machines of the cluster",
    "cluster": "the cluster as a whole",
    "status": "how the cluster is (cluster status)",
    "why": "why something is as it is",
    "connection": "clusters this workstation knows",
    "api": "the HTTP API and its tokens",
    "lab": "a whole cluster on this one machine",
    "completion": "shell completion",
}

MODULES: dict[str, str] = {
    "vm": "pvc.commands.vm",
    "node": "pvc.commands.node",
    "cluster": "pvc.commands.cluster",
    "status": "pvc.commands.cluster",
    "why": "pvc.commands.why",
    "connection": "pvc.commands.connection",
    "api": "pvc.commands.api",
    "lab": "pvc.commands.lab",
    "completion": "pvc.commands.completion",
}
"""Noun → the module that declares its operations.

A table, because a packed program cannot list a directory.
"""
