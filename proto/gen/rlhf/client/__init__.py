"""The Python client: `Client`, and `AsyncClient` for asyncio. docs/api.md shows both."""

from services.client import AsyncClient, Client, Endpoint, Progress, json_lines

__all__ = ["AsyncClient", "Client", "Endpoint", "Progress", "json_lines"]
