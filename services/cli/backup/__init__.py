"""A home's data in a folder, and a home made of such a folder."""
