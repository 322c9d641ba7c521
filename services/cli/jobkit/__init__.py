"""The commands that jobs of every kind have, made from a JobKind."""
