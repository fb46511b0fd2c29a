"""A checkpoint becomes a file or folder for other programs."""
