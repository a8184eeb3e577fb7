"""What becomes of the connections of a service of the kind `split`: mode.py tells."""
