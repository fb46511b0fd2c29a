"""Numbers to people: console, metrics.jsonl, Weights & Biases."""
