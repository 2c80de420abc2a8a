"""Starts the ranks of a model."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
import torch.distributed

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.execution.parallel.cores import divide_cores
from engine.execution.parallel.group import STEP_TIMEOUT_S
from engine.execution.parallel.messages import RankPlan
from engine.execution.parallel.processes import Ranks
from engine.models.decoder_config import DecoderConfig
from engine.models.divisible import check_divisible

log = logging.getLogger(__name__)


def start_ranks(
    config: EngineConfig, model_config: DecoderConfig, *, dtype: torch.dtype, device: torch.device
) -> Ranks:
    """This thread becomes rank 0: on a CPU it keeps its share of the cores and threads.

    Raises ConfigError if the model can't be divided, or there are too few GPUs.
    """
    size = config.tensor_parallel_size
    check_divisible(model_config, size)
    if not torch.distributed.is_available():
        raise ConfigError(f"--tensor-parallel-size {size}: this build of PyTorch lacks torch.distributed.")
    if device.type == "cuda" and (num_gpus := torch.cuda.device_count()) < size:
        raise ConfigError(f"--tensor-parallel-size {size} needs {size} GPUs, but PyTorch sees {num_gpus}.")
    num_threads = max(1, torch.get_num_threads() // size)
    cores = divide_cores(size) if device.type == "cpu" else None
    if device.type == "cpu":
        torch.set_num_threads(num_threads)
        log.info("Dividing the model among %d processes of %d CPU threads each.", size, num_threads)
    if cores is not None:
        os.sched_setaffinity(0, cores[0])
    plan = RankPlan(
        rank=0,
        size=size,
        config=config,
        model_config=model_config,
        dtype=dtype,
        device=device,
        num_threads=num_threads,
        rendezvous=Path(),
        step_timeout_s=STEP_TIMEOUT_S,
        log_level=logging.getLogger().level,
    )
    return Ranks(plan, cores)
