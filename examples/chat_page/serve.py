"""Serves the page beside this file and passes the rest on to a memcube server, so that the browser
talks to one place.

    python3 examples/chat_page/serve.py [ADDRESS OF MEMCUBE] [PORT]
"""

import http.server
import pathlib
import sys
import urllib.error
import urllib.request

MEMCUBE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7700"
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 7800
PAGE = pathlib.Path(__file__).with_name("index.html")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.split("?")[0] == "/":
            self.answer(200, "text/html; charset=utf-8", PAGE.read_bytes())
        else:
            self.pass_on(None)

    def do_POST(self):
        self.pass_on(self.rfile.read(int(self.headers.get("content-length", 0))))

    def pass_on(self, body):
        request = urllib.request.Request(MEMCUBE + self.path, body, method=self.command)
        for name in ("authorization", "content-type"):
            if name in self.headers:
                request.add_header(name, self.headers[name])
        try:
            with urllib.request.urlopen(request) as reply:
                self.answer(reply.status, reply.headers["content-type"], reply.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.headers["content-type"], error.read())
        except urllib.error.URLError as error:
            self.answer(502, "text/plain", f"{MEMCUBE}: {error.reason}".encode())

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("content-type", kind or "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    print(f"http://127.0.0.1:{PORT}/#key=API_KEY&cube=me  (memcube: {MEMCUBE})")
    http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
