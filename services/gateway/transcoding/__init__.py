"""HTTP/JSON to gRPC and back, by the annotations of the contract (google.api.http)."""
