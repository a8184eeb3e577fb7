"""The packetbridge: opens handed-over flows at the local server and lets it answer as the VIP."""
