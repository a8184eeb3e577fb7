"""The balancer: owns the VIPs, answers SYNs without state, and hands each flow to a backend."""
