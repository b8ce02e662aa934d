"""A whole cluster on this one machine: every node a container with systemd, booted from the node image.

`layout` names things, `render` writes what makes a node that node, `network` is the switch with its cables,
`power` and `supervise` run a node, `bmc` gives it a real IPMI; `up`, `inside` and `down` put them together.
State is one small file; everything else is found again by its name, so `lab down` cleans up after any crash.
"""
