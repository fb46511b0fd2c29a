"""What can go wrong in a run, how it is seen, and what is proposed."""
