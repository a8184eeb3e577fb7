"""`balancer trace`: what is decided, live, from both engines; and the balancer's end of it."""
