"""Rows of a file: read, mapped, decoded, made canonical, and what is wrong with them."""
