"""A run becomes a page: read its folder, judge it, draw it, write one HTML file."""
