"""Answers with its version."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

VERSION = Path("/srv/VERSION")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"report " + VERSION.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    HTTPServer(("", 8000), Handler).serve_forever()
