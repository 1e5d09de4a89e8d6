"""The client before servers that are away, silent or busy: a time limit, tries, and errors that name the address."""

import http.server
import json
import socket
import threading
import time

import pytest

from ameir_merlin.serve.client import Client


def test_a_server_that_is_away():
    for protocol in ("grpc", "http"):
        with (
            Client("127.0.0.1:9", protocol=protocol, timeout=0.5, retries=1) as client,
            pytest.raises(OSError, match="no answer in 2 tries"),
        ):
            client.score({})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_says_nothing(protocol):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with (
            Client(address, protocol=protocol, timeout=0.3, retries=1) as client,
            pytest.raises(TimeoutError, match=rf"{address}: no answer in 2 tries of 0\.3 seconds"),
        ):
            client.score({})
        assert 0.6 <= time.monotonic() - start < 5


def test_a_server_that_is_busy_is_asked_again():
    asked = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = json.dumps({"inputs": [{"name": "age", "datatype": "INT64"}]} if len(asked) == 3 else {}).encode()
            self.send_response(200 if len(asked) == 3 else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        with Client(address, protocol="http", retries=2) as client:
            assert client.inputs == {"age": ("int64", False)}
        assert asked == ["/v2/models/ameir"] * 3
        asked.clear()
        with (
            Client(address, protocol="http", retries=1) as client,
            pytest.raises(ConnectionError, match="no answer in 2 tries"),
        ):
            print(client.inputs)
        server.shutdown()
