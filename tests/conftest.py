"""Fixtures lie in `fix_*.py`, by subject."""

pytest_plugins = [
    "tests.fix_browser",
    "tests.fix_embedded",
    "tests.fix_live",
    "tests.fix_member",
    "tests.fix_runner",
    # After the one it imports, whose assertions pytest could not rewrite else.
    "tests.fix_learning",
    "tests.fix_telemetry",
    "tests.fix_verl",
]
