"""Pages in a browser: one that samples a model, and one that watches a training."""
