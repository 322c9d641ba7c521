"""The nouns and verbs of `rlhf`, one file each."""
