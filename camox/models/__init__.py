"""An image becomes logits: backbone, sparse mixture of experts, decoder, refinement."""
