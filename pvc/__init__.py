"""Parallel Virtual Cluster: a private cloud of KVM virtual machines in one file."""

__version__ = "0.1.0"
