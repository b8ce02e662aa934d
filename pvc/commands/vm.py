"""VMs: the modules named here declare the verbs."""

from __future__ import annotations

from pvc.commands import vm_define, vm_life, vm_log, vm_look, vm_moves, vm_settings

__all__ = ["vm_define", "vm_life", "vm_log", "vm_look", "vm_moves", "vm_settings"]
