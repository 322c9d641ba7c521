"""HTTP/1.1: routes, requests, files, problems."""
