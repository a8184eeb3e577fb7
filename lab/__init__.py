"""The Vagrant network in network namespaces: to try, to test and to measure the real programs."""
