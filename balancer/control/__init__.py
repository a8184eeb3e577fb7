"""What an operator sees of a balancer that runs, and does with it."""
