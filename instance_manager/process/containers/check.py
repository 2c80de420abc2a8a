"""Whether a runtime and an image are here, asked before a start. Blocks for at most two seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from instance_manager.process.containers.command import ContainerPlan, values_of

_TIMEOUT_S = 2.0
_NO_IMAGE = ("no such image", "image not known", "no such object")


def problem_of(plan: ContainerPlan, environ: Mapping[str, str]) -> str | None:
    """What would fail every start. `environ`: of the runtime's program."""
    if shutil.which(plan.runtime, path=environ.get("PATH")) is None:
        return f"`runtime: {plan.runtime}`: there is no program {plan.runtime!r} in PATH"
    for mount in plan.mounts:
        source = mount.partition(":")[0]
        is_made = any(str(folder) == source for folder in plan.folders)
        if source.startswith("/") and not is_made and not os.path.exists(source):
            return f"volumes: there is no {source}"
    said = _said_of_image(plan, environ)
    if said is None:
        return None
    if not _is_missing(said):
        return f"`runtime: {plan.runtime}` doesn't work: {said}"
    if "never" in values_of(plan.run_args, ("--pull",)):
        return f"its image {plan.image!r} isn't on this machine, and its run_args forbid a download"
    return None


def remark_on(plan: ContainerPlan, environ: Mapping[str, str]) -> str | None:
    """What the operator should know before the first start."""
    said = _said_of_image(plan, environ)
    if said is None or not _is_missing(said):
        return None
    return (
        f"its image {plan.image!r} isn't on this machine: the first start downloads it "
        f"(`{plan.runtime} pull {plan.image}` does so now)"
    )


def _is_missing(said: str) -> bool:
    return any(words in said.lower() for words in _NO_IMAGE)


def _said_of_image(plan: ContainerPlan, environ: Mapping[str, str]) -> str | None:
    """The runtime's complaint, its last line; None if the image is here, or the answer takes long."""
    program = shutil.which(plan.runtime, path=environ.get("PATH"))
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "image", "inspect", plan.image],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        return f"{program}: {error.strerror or error}"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")
