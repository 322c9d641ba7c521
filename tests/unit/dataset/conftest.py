from __future__ import annotations

from hypothesis import settings

# Rows are generated on machines that do other things as well: how long an example takes says nothing.
settings.register_profile("dataset", deadline=None)
settings.load_profile("dataset")
