"""What rewards work with that need more than the text: calls of a judge over HTTP, and processes for a user's code."""
