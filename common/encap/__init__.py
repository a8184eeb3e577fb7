"""What names a service on the way to its backend."""
