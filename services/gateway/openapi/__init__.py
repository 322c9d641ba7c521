"""The OpenAPI document of the HTTP side, made from the descriptors of the contract and their comments."""
