"""What runs a data path on a host: the loop, the queue, the rules, and the way back."""
