"""Training of networks and linear probes on the variants."""
