"""What pvc can do: one typed function is one operation. This table imports nothing, so that help is fast."""

NOUNS: dict[str, str] = {
    "vm": "virtual machines",
    "node": "the machines of the cluster",
    "network": "networks of virtual machines",
    "storage": "pools, volumes, their snapshots, and the disks of Ceph",
    "task": "what nodes do in the background",
    "cluster": "the cluster as a whole",
    "status": "how the cluster is (cluster status)",
    "why": "why something is as it is",
    "connection": "clusters this workstation knows",
    "api": "the HTTP API and its tokens",
    "metadata": "what guests may know of themselves",
    "lab": "a whole cluster on this one machine",
    "completion": "shell completion",
}

VERBS: dict[str, dict[str, tuple[str, ...]]] = {
    "vm": {
        "pvc.commands.vm_list": ("list",),
        "pvc.commands.vm_look": ("info", "definition", "dump"),
        "pvc.commands.vm_define": ("define", "create", "rename", "undefine", "remove"),
        "pvc.commands.vm_life": ("start", "shutdown", "stop", "restart", "disable"),
        "pvc.commands.vm_moves": ("move", "migrate", "unmigrate"),
        "pvc.commands.vm_settings": (
            *("set-definition", "modify", "meta", "vcpu get", "vcpu set", "memory get", "memory set"),
            *("tag get", "tag add", "tag remove"),
        ),
        "pvc.commands.vm_user_data": ("user-data get", "user-data set", "user-data remove"),
        "pvc.commands.vm_export": (
            *("snapshot export", "snapshot download-begin", "snapshot download-piece"),
            *("snapshot download-end",),
        ),
        "pvc.commands.vm_import": ("snapshot import", "snapshot upload-begin", "snapshot upload-piece"),
        "pvc.commands.vm_download": ("snapshot download",),
        "pvc.commands.vm_upload": ("snapshot upload",),
        "pvc.commands.vm_network": ("network get", "network add", "network remove"),
        "pvc.commands.vm_volume": ("volume get", "volume add", "volume remove"),
        "pvc.commands.vm_snapshot": (
            *("snapshot create", "snapshot list", "snapshot remove", "snapshot rollback"),
        ),
        "pvc.commands.vm_locks": ("flush-locks",),
        "pvc.commands.vm_log": ("log-text", "log"),
    },
    "node": {
        "pvc.commands.node_bmc": ("bmc",),
        "pvc.commands.node_network": ("network up", "network apply"),
        "pvc.commands.node_fence": ("fence", "fences"),
        "pvc.commands.node_ready": ("readiness", "verify"),
        "pvc.commands.node_primary": ("primary", "secondary", "is-primary"),
        "pvc.commands.node": ("info", "list", "flush", "ready", "remove", "log-text", "log", "run"),
    },
    "cluster": {
        "pvc.commands.cluster": ("init", "status", "maintenance"),
        "pvc.commands.cluster_settings": ("info", "set", "autoready"),
        "pvc.commands.task": ("task",),
    },
    "network": {
        "pvc.commands.network": ("add", "modify", "remove", "info", "list"),
        "pvc.commands.network_acl": ("acl add", "acl remove", "acl list"),
        "pvc.commands.network_dhcp": ("dhcp add", "dhcp remove", "dhcp list"),
        "pvc.commands.network_sriov": ("sriov pf list", "sriov vf list", "sriov vf info", "sriov vf set"),
    },
    "storage": {
        "pvc.commands.storage_status": ("status", "util"),
        "pvc.commands.storage_osd": (
            *(
                "osd list",
                "osd info",
                "osd add",
                "osd replace",
                "osd refresh",
                "osd remove",
                "osd create-db-vg",
            ),
            *("osd in", "osd out", "osd set", "osd unset"),
        ),
        "pvc.commands.storage_pool": ("pool add", "pool remove", "pool set-pgs", "pool info", "pool list"),
        "pvc.commands.storage_volume": (
            *("volume add", "volume remove", "volume resize", "volume rename", "volume clone"),
            *("volume info", "volume list"),
            *("volume snapshot add", "volume snapshot remove", "volume snapshot rename"),
            *("volume snapshot rollback", "volume snapshot protect", "volume snapshot list"),
        ),
        "pvc.commands.storage_transfer": (
            *("volume upload-begin", "volume upload-piece"),
            *("volume download-begin", "volume download-map", "volume download-piece", "volume download-end"),
        ),
        "pvc.commands.storage_image": ("volume upload", "volume download"),
        "pvc.commands.storage_benchmark": ("benchmark run", "benchmark info", "benchmark list"),
    },
    "task": {"pvc.commands.task": ("list", "info", "wait", "cancel")},
    "why": {"pvc.commands.why": ("vm", "node", "fence", "network")},
    "connection": {"pvc.commands.connection": ("add", "remove", "list", "default", "detail")},
    "api": {"pvc.commands.api": ("token add", "token list", "token remove", "serve", "openapi")},
    "metadata": {"pvc.commands.metadata": ("serve",)},
    "lab": {
        "pvc.commands.lab": ("up", "down", "status", "exec", "cut", "heal", "power", "bmc", "kill"),
    },
    "completion": {"pvc.commands.completion": ("bash", "zsh", "fish", "complete")},
}
"""Noun → module → the verbs that it declares: for one verb, one module is imported.

A table, because a packed program cannot list a directory; a test compares it with what the modules declare.
"""

FLAG_VERBS: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("node", "fence", "--verify"): ("verify", "--wait"),
}
"""Noun, verb and option that together mean another verb: `node fence --verify` switches nothing."""


FOR_PROGRAMS: dict[str, tuple[str, ...]] = {
    "vm": (
        *("definition", "set-definition", "log-text"),
        *("snapshot download-begin", "snapshot download-piece", "snapshot download-end"),
        *("snapshot upload-begin", "snapshot upload-piece"),
    ),
    "node": ("log-text",),
    "storage": (
        *("volume upload-begin", "volume upload-piece"),
        *("volume download-begin", "volume download-map", "volume download-piece", "volume download-end"),
    ),
    "completion": ("complete",),
}
"""Verbs that nobody types: help, completion and manual are silent about them, the API describes them."""


def verbs_of(noun: str) -> list[str]:
    return [verb for verbs in VERBS.get(noun, {}).values() for verb in verbs]


def typed_verbs(noun: str) -> list[str]:
    """Those that people type."""
    return [verb for verb in verbs_of(noun) if verb not in FOR_PROGRAMS.get(noun, ())]
