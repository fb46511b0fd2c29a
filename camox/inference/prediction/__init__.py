"""Images become masks: files in, pictures and objects out."""
