"""What `tools/benchmark.py` measures: counters, timing in interleaved rounds, and one module per suite."""
