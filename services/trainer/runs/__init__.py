"""Training runs: their records, and warnings of runs in which nothing is learnt."""
