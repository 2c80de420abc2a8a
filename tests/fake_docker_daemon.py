"""The daemon of `fake_docker`: runs "containers" as plain processes that are its own children."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

FAKE_DAEMON = __file__


class Container:
    """`process` is None until it is started."""

    def __init__(self, name: str, image: str, labels: dict[str, str]) -> None:
        self.id = os.urandom(32).hex()
        self.name = name
        self.image = image
        self.labels = labels
        self.process: subprocess.Popen[bytes] | None = None
        self.error = ""

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, signum: int) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:
                return

    def described(self) -> dict[str, Any]:
        code = self.process.poll() if self.process is not None else 0
        state = {
            "Status": "running" if self.is_running else "exited",
            "Running": self.is_running,
            "OOMKilled": False,
            "Pid": self.process.pid if self.process is not None and self.is_running else 0,
            "ExitCode": 0 if code is None else exit_code(code),
            "Error": self.error,
        }
        config = {"Labels": self.labels, "Image": self.image}
        return {"Id": self.id, "Name": f"/{self.name}", "State": state, "Config": config}


def exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


class Daemon:
    """One thread per connection. A request is JSON, and so is the answer: {"error"} or {"result"}."""

    def __init__(self, path: str) -> None:
        self._containers: dict[str, Container] = {}
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()

    def serve(self) -> None:
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
            request = json.loads(data)
            try:
                answer = {"result": getattr(self, request.pop("do"))(descriptors, **request)}
            except LookupError as error:
                answer = {"error": error.args[0]}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            try:
                connection.sendall(json.dumps(answer).encode())
            except OSError:
                return  # the program was killed; its container runs on

    def create(self, _: list[int], name: str, image: str, labels: dict[str, str]) -> str:
        with self._lock:
            if "missing" in image:
                raise LookupError(
                    f"pull access denied for {image}, repository does not exist or may require 'docker login'"
                )
            for other in self._containers.values():
                if other.name == name:
                    raise LookupError(
                        f'Conflict. The container name "/{name}" is already in use by container "{other.id}".'
                    )
            container = Container(name, image, labels)
            self._containers[container.id] = container
            return container.id

    def start(self, descriptors: list[int], container: str, argv: list[str], env: dict[str, str]) -> int:
        """Returns the exit code, once it has ended."""
        found = self._find(container)
        try:
            found.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=descriptors[0],
                stderr=descriptors[1],
                env={"PATH": os.environ["PATH"], **env},
                start_new_session=True,
            )
        except OSError as error:
            found.error = f'failed to create task: exec: "{argv[0]}": {error.strerror}'
            raise LookupError(found.error) from error
        code = found.process.wait()
        found.signal(signal.SIGKILL)  # without its first process, a namespace has none
        return exit_code(code)

    def ps(self, _: list[int], label: str) -> str:
        key, value = label.split("=", 1)
        return "\n".join(one.id for one in self._containers.values() if one.labels.get(key) == value)

    def inspect(self, _: list[int], container: str) -> dict[str, Any]:
        return self._find(container).described()

    def stop(self, _: list[int], container: str, seconds: int) -> None:
        found = self._find(container)
        found.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while found.is_running and time.monotonic() < deadline:
            time.sleep(0.01)
        self.kill([], container)

    def kill(self, _: list[int], container: str) -> None:
        found = self._find(container)
        found.signal(signal.SIGKILL)
        while found.is_running:
            time.sleep(0.01)

    def rm(self, _: list[int], container: str) -> None:
        self.kill([], container)
        self._containers.pop(container, None)

    def _find(self, name: str) -> Container:
        for one in self._containers.values():
            if name in (one.id, one.name):
                return one
        raise LookupError(f"No such container: {name}")


if __name__ == "__main__":
    Daemon(sys.argv[1]).serve()
