"""From a command to processes that have found each other and agree on what they train."""
