"""What the doctors of both programs share: asking a bridge, the host's clock, the report."""
