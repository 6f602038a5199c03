"""What runs many nodes: launcher, proxies, nemesis, workloads."""
