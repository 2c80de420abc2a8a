"""One operation on the hub's cache: `python -m instance_manager.hub.pull_child`, then `pull` or `rm`.

Arguments are `pull MODEL [REVISION]` or `rm MODEL`; MODEL may end with `:QUANTISATION`. A process of its own
because the library can't be cancelled, and so that Berth never imports it. Writes the response of
`POST /models/pull`, one JSON object per line; the last has `status: success` or `error`. HF_HOME,
HF_ENDPOINT, HF_TOKEN and proxies come from the environment.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it is exported

from instance_manager.gguf.names import split_tag
from instance_manager.hub.errors import HubError, disk_full, explained, no_quantisation, no_weights
from instance_manager.hub.files import gguf_choice, gguf_models, needed_files
from instance_manager.hub.quantisation_removal import remove_quantisation
from instance_manager.hub.transfer import Progress, RemoteFile, prepare_library

_PARALLEL_FILES = 8  # the library's own number
_HUB_TIMEOUT_S = 30.0
_WEIGHTS = (".gguf", ".safetensors", ".bin")


def main(argv: list[str]) -> int:
    """Exit status 0 on success, 1 if the last line is an error or a traceback is on stderr."""
    operation, name, *rest = argv
    model, tag = split_tag(name)
    revision = rest[0] if rest else None
    disable_progress_bars()
    prepare_library(_HUB_TIMEOUT_S)
    try:
        say(pull(model, revision, tag) if operation == "pull" else remove(model, tag))
    except Exception as exc:
        error = explained(exc, model, revision)
        if error is None:
            traceback.print_exc()  # for Berth's log
            return 1
        say({"error": {"message": error.message, "type": error.type, "param": None, "code": error.code}})
        return 1
    return 0


def pull(model: str, revision: str | None, tag: str | None = None) -> dict[str, Any]:
    """Download the files that an engine needs, of GGUF files one quantisation. Returns the last line."""
    say({"status": "resolving"})
    info = HfApi().model_info(model, revision=revision, timeout=_HUB_TIMEOUT_S)
    commit = info.sha
    called, names, first = _chosen(model, [sibling.rfilename for sibling in info.siblings or ()], tag)
    if commit is None:
        raise no_weights(model)
    pool = ThreadPoolExecutor(_PARALLEL_FILES)  # never joined: if one file fails, `leave` ends the process
    files = list(pool.map(lambda name: RemoteFile(model, name, commit), names))
    _check_space(files)
    progress = Progress({file.name: file.size for file in files}, _say_progress)
    for file in files:
        progress.put(file.name, file.num_cached_bytes)
    with progress:
        list(pool.map(lambda file: file.fetch(progress), [file for file in files if file.is_for_http]))
    # Links the blobs into a snapshot, and downloads files that are too large for HTTP.
    path = snapshot_download(model, revision=revision, allow_patterns=[glob.escape(name) for name in names])
    return {
        "status": "success",
        "model": called,
        "path": str(Path(path, first)),
        "size_bytes": sum(file.size for file in files),
    }


def _chosen(model: str, names: list[str], tag: str | None) -> tuple[str, list[str], str]:
    """The model's name, its files, and the one that an engine is given; "" stands for their folder.

    Says which quantisation is taken. Raises HubError.
    """
    if tag is None and (needed := needed_files(names)):
        return model, needed, ""
    choice = gguf_choice(model, names, tag)
    if choice is None and tag is None:
        raise no_weights(model)
    if choice is None:
        existing = [one.quantisation for one in gguf_models(model, names) if one.quantisation]
        raise no_quantisation(model, str(tag), sorted(set(existing)))
    called = model if choice.quantisation is None else f"{model}:{choice.quantisation}"
    say({"status": "resolving", "model": called, "files": list(choice.files)})
    return called, list(choice.files), choice.files[0]


def remove(model: str, tag: str | None = None) -> dict[str, Any]:
    """Delete all revisions and partial downloads, or one quantisation. The last line has `freed_bytes`."""
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))
    if not folder.is_dir():
        raise HubError(
            "not_found_error", "model_not_found", f"{model} is not in the cache {constants.HF_HUB_CACHE}"
        )
    if tag is not None:
        freed_bytes = remove_quantisation(folder, model, tag)
        if any(path.suffix in _WEIGHTS for path in folder.glob("snapshots/**/*")):
            return {"status": "success", "freed_bytes": freed_bytes}
        rest = remove(model)
        return {**rest, "freed_bytes": freed_bytes + rest["freed_bytes"]}
    cache = scan_cache_dir()
    revisions = [found for repo in cache.repos if repo.repo_path == folder for found in repo.revisions]
    used = {file.blob_path for revision in revisions for file in revision.files}
    num_unused_bytes = sum(blob.lstat().st_size for blob in folder.glob("blobs/*") if blob not in used)
    strategy = cache.delete_revisions(*(revision.commit_hash for revision in revisions))
    strategy.execute()
    if folder.exists():  # partial downloads only
        shutil.rmtree(folder)
    shutil.rmtree(Path(constants.HF_HUB_CACHE, ".locks", folder.name), ignore_errors=True)
    return {"status": "success", "freed_bytes": strategy.expected_freed_size + num_unused_bytes}


def say(line: dict[str, Any]) -> None:
    """Write one line to the parent process. Exit if it has no reader any more, since Berth was killed."""
    try:
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


def _say_progress(name: str | None, completed: int, total: int) -> None:
    say({"status": "downloading", "file": name, "completed": completed, "total": total})


def _check_space(files: list[RemoteFile]) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    needed = sum(file.size - file.num_cached_bytes for file in files)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise disk_full(str(cache), needed, free)


def leave(status: int) -> None:
    """Exit at once: a normal exit would wait for the threads, i.e. for all other files."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
