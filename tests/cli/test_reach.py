"""Addresses without a Berth: the error names the address, what is wrong and what to do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.berth_process import free_port
from tests.cli.command import berth

pytestmark = pytest.mark.timeout(60)


class SomethingElse(BaseHTTPRequestHandler):
    """Another program's web server."""

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        answers = {"/models": b"<html></html>", "/instances": b'{"data": [{"strange": 1}]}'}
        body = answers.get(self.path.split("?")[0])
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b"not found")


@contextmanager
def something_else() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SomethingElse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def no_web_server() -> Iterator[int]:
    """It greets each client, as a mail server does."""

    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"220 hello\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def refused(url: str, *args: str) -> str:
    ran = berth(url, *args)
    assert (ran.returncode, ran.stdout, "Traceback" in ran.stderr) == (3, "", False), ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    return ran.stderr


def test_a_closed_port_is_reported() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = refused(url, "list")
    assert f"at {url}: nothing listens there" in error
    assert "`berth serve`" in error and "BERTH_URL" in error
    envelope = json.loads(berth(url, "list", "--json").stdout)
    assert url in envelope["error"]["message"]


def test_an_unknown_host_is_reported() -> None:
    assert "there is no host 'no-such-host.invalid'" in refused("http://no-such-host.invalid:5000", "ps")


def test_a_server_without_tls_is_reported(url: str) -> None:
    assert f"it doesn't use TLS; try {url}" in refused(url.replace("http:", "https:"), "ps")


def test_another_web_server_is_reported() -> None:
    with something_else() as port:
        url = f"http://127.0.0.1:{port}"
        assert f"{url} answered 404, but not as Berth does" in refused(url, "info")
        assert f"{url} answered with something that isn't JSON" in refused(url, "list")
        assert f"{url} answered differently from Berth" in refused(url, "ps")


def test_a_server_without_http_is_reported() -> None:
    with no_web_server() as port:
        assert "didn't answer as Berth does" in refused(f"http://127.0.0.1:{port}", "ps")


def test_the_base_url_of_openai_clients_is_accepted(url: str) -> None:
    assert berth(f"{url}/v1/", "list").returncode == 0


def test_an_argument_in_another_encoding_is_a_usage_error(url: str) -> None:
    ran = berth(url, "run", "talker", "caf\udce9")
    assert (ran.returncode, "can't be sent" in ran.stderr) == (2, True)
