"""State to disk and back: safetensors only, atomic, verified finite."""
