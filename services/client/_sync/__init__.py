"""Generated from `services.client._async` by `services.client.unasync`: never edited."""
