"""`rlhf demo`: a small model learns a task from scratch, through the same calls that everybody makes."""
