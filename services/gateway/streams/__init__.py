"""Server streams over HTTP: Server-Sent Events, JSON lines, WebSockets."""
