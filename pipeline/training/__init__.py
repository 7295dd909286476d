"""Training: networks and linear probes on the variants, and what they were trained on."""
