"""The node daemon: observe, plan, act."""
