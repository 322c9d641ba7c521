"""Writing to a call that the other side may end at any moment; see services/mesh/writing.py."""

from services.mesh.writing import finish, send

__all__ = ["finish", "send"]
