"""What rows can be made of. One file each; adding a file adds a format."""

from __future__ import annotations

from services.dataset.reading.input_layouts import Format
from services.mesh.registry import Registry

formats: Registry[type[Format]] = Registry("format", __name__)
