"""Finds everything that would prevent a start, or that the operator should know, without a start."""

from __future__ import annotations

import os

from api.protocols.registry import PluginError, load_protocols
from composition.catalog_profiles import catalog_profiles
from composition.policies import ENV_FILE, api_keys, engine_kinds, manager_config, state_url
from configs.catalog import load_catalog
from configs.catalog_error import CatalogError
from configs.remarks import Remark, Report
from configs.settings_error import SettingsError
from configs.settings_reader import Loaded
from instance_manager.fleet.startable import grouped_problems, problem_of, problems_by_name, remark_on
from instance_manager.memory.gpu import GpuDriver


def all_mistakes(loaded: Loaded) -> list[str]:
    """Everything that prevents a start."""
    settings = loaded.settings
    mistakes = list(loaded.mistakes)
    for attempt in (
        lambda: api_keys(settings),
        lambda: state_url(settings),
        lambda: load_protocols(settings.protocol_plugins),
        lambda: load_catalog(settings.models_file, kinds=engine_kinds()),
        lambda: catalog_profiles(settings, manager_config(settings, ENV_FILE)),
    ):
        try:
            attempt()
        except CatalogError as error:
            mistakes += error.lines
        except (SettingsError, PluginError) as error:
            mistakes += str(error).splitlines()
    return list(dict.fromkeys(mistakes))  # the last attempt repeats the two before it


def check(loaded: Loaded) -> Report:
    """Everything that a start would refuse or remark on, without a start."""
    report, settings = Report(all_mistakes(loaded), [*loaded.remarks, *loaded.notes]), loaded.settings
    try:
        config = manager_config(settings, ENV_FILE)
        source = catalog_profiles(settings, config)
    except (SettingsError, CatalogError, PluginError):
        return report  # the rest would only repeat it
    profiles = source.profiles()
    found = [*source.found()]  # engine kinds look at their programs first
    gpus = GpuDriver(os.environ).list_gpus() if any(one.devices for one in profiles) else ()
    problems = problems_by_name(profiles, lambda one: problem_of(one, config, gpus))
    report.add([*found, *(Remark(line, is_mistake=True) for line in grouped_problems(problems))])
    startable = (one for one in profiles if one.runtime is not None and one.name not in problems)
    remarks = (remark_on(one, config) for one in startable)
    report.add(Remark(line) for line in remarks if line is not None)
    report.num_models = len(profiles)
    return report
