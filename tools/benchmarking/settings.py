"""What a benchmark is run with."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Name of a number format → Accelerate's name for it."""


@dataclass(frozen=True)
class Settings:
    """Sizes and device of one benchmark."""

    device: str = "cpu"
    backbone: str = "edgenext_base"
    image_size: int = 352
    batch: int = 4
    width: int = 128
    precision: str = "fp32"
    megabytes: int = 1000
    rounds: int = 9

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def of_targets(self) -> bool:
        """Whether these are the defaults, which the targets are stated for."""
        return self == Settings()

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass has the chosen precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.torch_device.type, dtype, enabled=self.precision != "fp32")

    def accelerator(self) -> Accelerator:
        """One of the chosen precision, whatever the one before had: Accelerate keeps one for the whole process."""
        AcceleratorState._reset_state()
        return Accelerator(cpu=not self.on_gpu, mixed_precision=PRECISIONS[self.precision])
