"""Models: imported, resolved to the layers of their weights, brought to a worker's disk."""
