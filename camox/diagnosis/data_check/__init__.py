"""`camox data check`: a dataset examined, and what was found shown on the terminal, as a page, a picture and JSON."""
