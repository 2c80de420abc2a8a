"""A container runtime in outline: this is its program `docker`, and `fake_docker_daemon` its daemon.

As with the real one, a container is the daemon's child and not the program's: it outlives the program, and
has a name, labels, an exit code and a place in `ps` until it is removed. There are no images and no
namespaces: a container sees the machine's files; an image whose name holds "missing" isn't there. Standard
library only, and little of it, so that it starts at once. DOCKER_HOST names the daemon's socket.
"""

from __future__ import annotations

import json
import os
import socket
import sys

FAKE_DOCKER = os.path.realpath(__file__)
FAILED = 125

VALUED = {
    *(
        "--name",
        "--label",
        "--cidfile",
        "--log-driver",
        "--network",
        "--shm-size",
        "-v",
        "-e",
        "-p",
        "--gpus",
    ),
    *("--device", "--security-opt", "--memory", "--pull", "--entrypoint", "--ipc"),
}


class Failed(Exception):
    """What the program says before it exits."""


class Lost(Exception):
    """The daemon has ended meanwhile."""


def ask(do: str, descriptors: tuple[int, ...] = (), **fields: object) -> object:
    url = os.environ["DOCKER_HOST"]
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(url.removeprefix("unix://"))
        except OSError:
            raise Failed(
                f"Cannot connect to the Docker daemon at {url}. Is the docker daemon running?"
            ) from None
        socket.send_fds(connection, [json.dumps({"do": do, **fields}).encode()], descriptors)
        chunks = b""
        while chunk := connection.recv(1 << 16):
            chunks += chunk
    if not chunks:
        raise Lost
    answer = json.loads(chunks)
    if "error" in answer:
        raise Failed(f"Error response from daemon: {answer['error']}")
    return answer["result"]


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")


def complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def run(arguments: list[str]) -> int:
    options: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        flag, equals, value = rest.pop(0).partition("=")
        if flag != "--init" and flag not in VALUED:
            complain(f"unknown flag: {flag}\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]")
            return FAILED
        options.setdefault(flag, []).append(value if equals or flag == "--init" else rest.pop(0))
    image, *argv = rest
    argv = options.get("--entrypoint", []) + argv
    env = {}
    for given in options.get("-e", []):
        name, equals, value = given.partition("=")
        if equals or name in os.environ:
            env[name] = value if equals else os.environ[name]
    labels = dict(one.split("=", 1) for one in options.get("--label", []))
    try:
        container = ask("create", name=options["--name"][0], image=image, labels=labels)
        for path in options.get("--cidfile", []):
            with open(path, "w") as file:
                file.write(str(container))
        return int(str(ask("start", (1, 2), container=container, argv=argv, env=env)))
    except Lost:
        complain('time="now" level=error msg="error waiting for container: unexpected EOF"')
        return FAILED
    except Failed as error:
        complain(f"docker: {error}\n\nRun 'docker run --help' for more information")
        return 127 if "exec: " in str(error) else FAILED


def client(verb: str, arguments: list[str]) -> int:
    names = [one for one in arguments if not one.startswith("-")]
    try:
        if verb == "run":
            return run(arguments)
        if verb == "ps":
            label = arguments[arguments.index("--filter") + 1].removeprefix("label=")
            say(ask("ps", label=label))
        elif verb == "inspect":
            say(json.dumps([ask("inspect", container=names[-1])]))
        elif verb == "create":
            name = arguments[arguments.index("--name") + 1]
            say(ask("create", name=name, image=names[1], labels={}))
        elif verb == "image":
            ask("ps", label="nothing=")
            if "missing" in names[-1]:
                raise Failed(f"Error response from daemon: No such image: {names[-1]}")
            say("[]")
        elif verb == "stop":
            seconds = int(arguments[arguments.index("-t") + 1])
            for name in names[1:]:
                ask("stop", container=name, seconds=seconds)
        else:
            for name in names:
                ask(verb, container=name)
    except Failed as error:
        complain(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(client(sys.argv[1], sys.argv[2:]))
