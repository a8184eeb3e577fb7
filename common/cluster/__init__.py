"""What balancers and bridges of a cluster must agree on."""
