"""verl's trainers with our rows, reporting, checkpoints and exact resume, one file each."""
