"""State and decisions of the cluster: no process, no thread, no sleep."""
