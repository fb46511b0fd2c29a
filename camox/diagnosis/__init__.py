"""Is this experiment sound before it runs?"""
