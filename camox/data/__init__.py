"""Files become batches: layouts, decoding, augmentation, loading, and synthetic habitats."""
