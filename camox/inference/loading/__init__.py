"""From a path, an exported file or a hub id to a model that is ready, and what is known of it."""
