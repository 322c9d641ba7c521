"""What makes a process a member of the mesh. Nothing here imports a service."""
