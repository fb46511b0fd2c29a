"""A trained run becomes masks and scores."""
