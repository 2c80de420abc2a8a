"""The contenders: how each is started, pinned, and measured for CPU time."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

LOAD_CORE, PROXY_CORE = 0, 1

_NGINX_CONF = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream engine {{ server 127.0.0.1:{upstream_port}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
        }}
    }}
}}
"""


@dataclass
class Running:
    """A started contender; `prefix` goes before every path."""

    name: str
    port: int
    prefix: str = ""
    process: subprocess.Popen[bytes] | None = None

    def cpu_s(self) -> float:
        """CPU seconds used so far by the process and its children."""
        if self.process is None:
            return 0.0
        root = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (root, *root.children())]
        return float(sum(used.user + used.system for used in times))

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:  # it waits for its last streams, which are not measured
                self.process.kill()
                self.process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pin(process: subprocess.Popen[bytes], core: int) -> None:
    """Bind a process without children to one core, if the system supports it and has that core."""
    if hasattr(os, "sched_setaffinity") and core in os.sched_getaffinity(0):
        os.sched_setaffinity(process.pid, {core})


def wait_listening(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{what} ended with exit code {process.returncode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{what} did not listen on port {port} within 30 s")


def compile_tools(folder: Path) -> tuple[Path, Path]:
    """Build the C upstream and load generator; returns their paths."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        raise SystemExit("the benchmark needs a C compiler named cc, and Linux (its tools use epoll)")
    built = []
    for name in ("upstream", "load"):
        target = folder / name
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run([compiler, "-O2", "-Wall", "-o", str(target), str(source)], check=True)
        built.append(target)
    return built[0], built[1]


def start(name: str, argv: list[str], port: int, *, core: int, prefix: str = "") -> Running:
    process = subprocess.Popen(argv)
    pin(process, core)
    wait_listening(port, process, name)
    return Running(name, port, prefix, process)


def _module(name: str, module: str, upstream_port: int, prefix: str = "") -> Running:
    port = free_port()
    argv = [sys.executable, "-m", f"benchmarks.proxy.{module}", str(port), str(upstream_port)]
    return start(name, argv, port, core=PROXY_CORE, prefix=prefix)


def start_nginx(upstream_port: int, folder: Path) -> Running | None:
    """nginx with buffering off, or None if it is not installed."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        return None
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX_CONF.format(folder=folder, port=port, upstream_port=upstream_port))
    argv = [binary, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    if shutil.which("taskset"):  # its worker is forked before we could pin it
        argv = ["taskset", "-c", str(PROXY_CORE), *argv]
    return start("nginx", argv, port, core=PROXY_CORE)


def contenders(upstream_port: int, folder: Path) -> list[Running]:
    """Start all contenders available here; the caller stops them."""
    starters: list[Callable[[], Running | None]] = [
        lambda: Running("direct", upstream_port),
        lambda: start_nginx(upstream_port, folder),
        lambda: _module("berth", "serve_berth", upstream_port, prefix="/proxy/bench"),
        lambda: _module("berth by name", "serve_berth", upstream_port, prefix="/v1"),
        lambda: _module("fastapi+aiohttp", "serve_aiohttp", upstream_port),
        lambda: _module("fastapi+httpx", "serve_httpx", upstream_port),
    ]
    running: list[Running] = []
    try:
        for starter in starters:
            contender = starter()
            if contender is not None:
                running.append(contender)
    except BaseException:
        for contender in running:
            contender.stop()
        raise
    return running
