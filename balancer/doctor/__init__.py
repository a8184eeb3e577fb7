"""From hang to cause: what is looked at (path, handoffs, local), what is found, what follows."""
