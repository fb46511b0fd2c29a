"""Run by torchrun in two processes that share one GPU: trains an experiment and prints what its weights sum up to.

NCCL refuses two ranks on one device, so they meet by gloo, which carries CUDA tensors too.
"""

import os
import sys

import torch
import torch.distributed as dist

from camox.experiment import Experiment
from camox.training.trainer import Trainer


def main(file: str, output: str) -> None:
    os.environ["LOCAL_RANK"] = "0"  # which device a process takes
    dist.init_process_group("gloo")
    trainer = Trainer(Experiment.load(file, output=output))
    trainer.accelerator.end_training = lambda: None  # it would part the processes
    trainer.run()
    weights = sum(t.double().sum().item() for n, t in trainer.network.state_dict().items() if "running" not in n)
    sums: list[object] = [None, None]
    dist.all_gather_object(sums, weights)
    if dist.get_rank() == 0:
        sys.stdout.write(f"device {trainer.accelerator.device.type} weights {sums[0]} {sums[1]}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
