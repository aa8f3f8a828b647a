"""Keeps notes in files. GET /notes lists them, POST /notes adds one."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NOTES = Path(os.environ["NOTES"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/notes":
            self.reply(404, {"error": "not found"})
            return
        self.reply(200, [each.read_text() for each in sorted(NOTES.iterdir())])

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        number = len(list(NOTES.iterdir()))
        (NOTES / f"{number:06}").write_text(text)
        self.reply(201, {"number": number})

    def reply(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    NOTES.mkdir(parents=True, exist_ok=True)
    print(f"notes are kept in {NOTES}", flush=True)
    ThreadingHTTPServer(("", 8000), Handler).serve_forever()
