"""What is trained. A task is all that the trainer knows of it; one class per file."""
