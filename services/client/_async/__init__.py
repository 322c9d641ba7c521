"""The client, written once, for asyncio; `services.client._sync` is generated from it by `services.client.unasync`."""
