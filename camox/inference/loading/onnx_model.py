"""An exported ONNX model in the place of the network: for predicting and scoring, by onnxruntime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camox.errors import CamoxError, CheckpointError
from camox.inference.loading.facts import Facts

METADATA_KEY = "camox"


@dataclass
class MapsOutput:
    """What an exported model says of a batch: the maps of `CamoXpertOutput` that are not for a loss."""

    logits: Tensor
    """`[B, 1, H, W]` at the input's own size."""

    uncertainty: Tensor
    """`[B, 1, H, W]`, in (0, 1]."""


class OnnxModel(nn.Module):
    """`model(images)` with float `[B, 3, H, W]`, RGB in [0, 1], on any device; maps come back on that device.

    Raises:
        CheckpointError: not an ONNX model, or not one that `camox export` wrote; or no such device for onnxruntime.
    """

    def __init__(self, file: str | Path, device: str | torch.device | None = None):
        super().__init__()
        self.session = _open(Path(file), device)
        held = self.session.get_modelmeta().custom_metadata_map
        maps = self.session.get_inputs() + self.session.get_outputs()
        names = [one.name for one in maps]
        channels = [one.shape[1] if len(one.shape) == 4 else None for one in maps]
        if METADATA_KEY not in held or names != ["images", "logits", "uncertainty"] or channels != [3, 1, 1]:
            raise CheckpointError(
                f"{file}: is an ONNX model, but not one that camox export wrote (inputs and outputs "
                f"{', '.join(f'{one.name} {one.shape}' for one in maps)}): camox cannot know what it takes and gives"
            )
        self.facts = Facts.from_json(held[METADATA_KEY], str(file))

    @property
    def provider(self) -> str:
        """What onnxruntime runs it on, such as CPUExecutionProvider."""
        return str(self.session.get_providers()[0])

    def forward(self, images: Tensor) -> MapsOutput:
        """Raises CheckpointError where onnxruntime refuses the images, such as for want of memory."""
        try:
            maps = self.session.run(["logits", "uncertainty"], {"images": images.float().cpu().numpy()})
        except Exception as error:  # its errors derive from Exception alone
            raise CheckpointError(
                f"onnxruntime cannot run the model on {list(images.shape)}: {error}: try a smaller --batch-size"
            ) from error
        logits, uncertainty = (torch.from_numpy(array).to(images.device) for array in maps)
        return MapsOutput(logits, uncertainty)


def require_onnxruntime() -> Any:
    """The module. Raises CamoxError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise CamoxError(
            f"ONNX models need packages that are not installed ({error}): pip install 'camox[export]'"
        ) from error
    return onnxruntime


def _open(file: Path, device: str | torch.device | None) -> Any:
    onnxruntime = require_onnxruntime()
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file: give a model that camox export wrote")
    options = onnxruntime.SessionOptions()
    # As many as PyTorch: who limits the threads of a process by OMP_NUM_THREADS means all of it.
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what the graph's optimiser has to remark helps nobody here
    wanted = _providers(onnxruntime, device)
    try:
        return onnxruntime.InferenceSession(str(file), sess_options=options, providers=wanted)
    except Exception as error:  # its errors derive from Exception alone
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{file}: is no model that onnxruntime {onnxruntime.__version__} can open ({reason}): export it again, or "
            "update onnxruntime"
        ) from error


def _providers(onnxruntime: Any, device: str | torch.device | None) -> list[str]:
    wanted = None if device is None else torch.device(device).type
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if wanted not in (None, "cpu", "cuda") or (wanted == "cuda" and not cuda):
        raise CheckpointError(
            f"this onnxruntime does not run on {wanted} (it has {', '.join(onnxruntime.get_available_providers())}): "
            "install onnxruntime-gpu for NVIDIA cards, or run on the CPU"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda and wanted != "cpu" else ["CPUExecutionProvider"]
