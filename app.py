"""Berth's entry point: reads the settings, builds the server and serves.

`create_app(settings)` returns the ASGI application; `python app.py` serves it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from api.protocols.registry import PluginError
from composition.application import create_app
from composition.policies import ENV_FILE, engine_kinds
from composition.server import BerthServer, CantListen, create_server
from composition.start_check import all_mistakes, check
from composition.telemetry import Telemetry
from composition.version import VERSION
from configs.catalog_error import CatalogError
from configs.engine_variables import sdk_environment
from configs.root import CODE, HOME
from configs.service_flags import FlagError, parse_flags
from configs.settings import Settings
from configs.settings_error import SettingsError
from configs.settings_reader import Loaded, read_settings
from instance_manager.state.stores.errors import InvalidStateUrl, StoreError
from log_output.setup import configure_logging

__all__ = ["create_app", "main"]

logger = logging.getLogger("berth")


def main(argv: Sequence[str]) -> int:
    """Serve until stopped; the exit status is 0, 1 (could not serve) or 2 (invalid settings)."""
    if HOME != CODE:  # .env is there, and relative paths in settings are relative to it
        HOME.mkdir(parents=True, exist_ok=True)
        os.chdir(HOME)
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # env_file.py reports the same by line
    try:
        flags = parse_flags(argv, VERSION)
    except FlagError as error:
        return _refuse([str(error)])
    loaded = read_settings(ENV_FILE, flags.given, engine_kinds())
    if flags.check:
        report = check(loaded)
        sys.stdout.write((report.as_json() if flags.as_json else report.as_text()) + "\n")
        return report.exit_status
    if loaded.mistakes:
        return _refuse(all_mistakes(loaded))
    try:
        _begin_logging(loaded)
        telemetry = Telemetry(loaded.settings)
        server = create_server(loaded.settings, ENV_FILE, telemetry.traces)
    except (SettingsError, CatalogError, PluginError) as error:
        return _refuse(all_mistakes(loaded) or [str(error)])  # with all other mistakes
    return _serve(loaded.settings, server, telemetry)


def _serve(settings: Settings, server: BerthServer, telemetry: Telemetry) -> int:
    logger.info("Berth %s on http://%s:%s", VERSION, settings.app_host, settings.app_port)
    if settings.ollama_port:
        logger.info("Ollama's API on http://%s:%s", settings.app_host, settings.ollama_port)
    try:
        server.run()
    except StoreError as error:
        sys.stderr.write(f"berth: {error}\n")
        return 2 if isinstance(error, InvalidStateUrl) else 1
    except CantListen as error:
        address = f"APP_HOST={settings.app_host} {error.setting}={error.port}"
        sys.stderr.write(f"berth: {address}: can't listen: {error.strerror or error}\n")
        return 1
    finally:
        telemetry.close()
    return 1 if server.has_broken_down else 0


def _begin_logging(loaded: Loaded) -> None:
    """Raises SettingsError."""
    settings = loaded.settings
    try:
        configure_logging(
            settings.log_format,
            level=settings.log_level,
            debug=settings.app_debug,
            access_log=settings.access_log,
            file=settings.log_file,
        )
    except OSError as error:
        raise SettingsError(f"LOG_FILE={settings.log_file}: {error.strerror or error}") from None
    for name, value in sdk_environment(ENV_FILE).items():
        os.environ.setdefault(name, value)
    for remark in loaded.remarks:
        logger.warning("%s", remark)
    for note in loaded.notes:
        logger.info("%s", note)


def _refuse(mistakes: Sequence[str]) -> int:
    for line in mistakes:
        sys.stderr.write(f"berth: {line}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
