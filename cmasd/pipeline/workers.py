"""A function in several processes that share their gradients, through Ray Train: one GPU each where there are any.

Ray Train starts the processes, on one node or on several, and connects them (`torch.distributed`); what they do
together is the function's business.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from cmasd.errors import ConfigError, TrainingError
from cmasd.pipeline import cluster


def together(function: Callable[[], None], count: int, cpus_each: int, folder: Path) -> None:
    """Run the function in `count` processes to the end; Ray's own notes go to `folder`.

    Raises `TrainingError` when one of them fails, and `ConfigError` when Ray has not so many processors or GPUs.
    """
    with cluster.connected():
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpus = torch.cuda.is_available() or ray.cluster_resources().get("GPU", 0) > 0
        kind, each = ("GPU", 1) if gpus else ("CPU", cpus_each)
        there = int(ray.cluster_resources().get(kind, 0))
        if count * each > there:
            raise ConfigError(
                f"workers: must be at most {there // each}, since there are {there} {kind}(s) and each takes {each}, "
                f"got {count}. Lower workers{'' if gpus else ' or threads'}."
            )
        scaling = ScalingConfig(num_workers=count, use_gpu=gpus, resources_per_worker=None if gpus else {"CPU": each})
        trainer = TorchTrainer(function, scaling_config=scaling, run_config=RunConfig(storage_path=str(folder)))
        try:
            trainer.fit()
        except Exception as error:  # of whatever class Ray Train wraps it in
            reason = str(error).strip().splitlines()
            raise TrainingError(
                f"workers: training together failed ({reason[-1] if reason else type(error).__name__}). "
                "The same command goes on from the last checkpoint."
            ) from error
