"""Health checks: handoffs of the balancer's own, and what becomes of their results."""
