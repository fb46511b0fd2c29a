"""What a step of an experiment spends its time on, and what to do about it."""
