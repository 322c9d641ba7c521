"""The one door: HTTP/JSON from the annotations of the contract, and gRPC passed through byte for byte."""
