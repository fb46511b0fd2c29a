"""Two processes on one stream: each its own files, and both go on at their own sample."""

import json

import pytest
from safetensors.torch import load_file

from camox.checkpoints.store import list_checkpoints
from camox.data.streams import Reading, open_stream
from camox.experiment import Experiment
from camox.training.stream_batches import StreamBatches
from tests.data.hub_sets import rows, write_shards
from tests.distributed.test_stopped_ranks import EXPERIMENT, assert_resumes_as
from tests.distributed.test_two_ranks import ROOT, launch

pytestmark = pytest.mark.distributed


@pytest.mark.slow
def test_each_process_reads_its_part_and_a_stopped_run_goes_on_as_the_same(tmp_path):
    folder = write_shards(tmp_path / "set", rows(9), 3)
    source = f'train = [{{ hub = "{folder}", streaming = true, count = 8, shuffle_buffer = 3 }}]\n'
    val = 'val = [{ synthetic = "habitats", count = 2, size = 32, tiny = 0.0 }]\n'
    kept = [line for line in EXPERIMENT.splitlines() if not line.startswith(("train =", "val_fraction"))]
    text = "\n".join(kept).replace("[data]", "[data]\n" + source + val).replace("workers = 0", "workers = 1")
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    done = launch(str(ROOT / "tests/distributed/stopped_ranks.py"), str(tmp_path), str(file), "1", "training")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    parts, whole = tmp_path / "parts" / "tiny", tmp_path / "whole" / "tiny"
    (stopped,) = list_checkpoints(parts)
    assert stopped.name == "epoch_0000_step_0000002"
    # What one rank of two reads is tested without processes: these two are at the places of those.
    seed = Experiment.load(file).experiment.seed
    for rank in (0, 1):
        reading = Reading(open_stream({"hub": str(folder), "count": 8, "shuffle_buffer": 3}), seed, rank, ranks=2)
        sampler = StreamBatches(reading, batch_size=1)
        list(sampler)
        sampler.consumed(2)
        place = load_file(stopped / f"rng_{rank}.safetensors")["stream"]
        assert json.loads(bytes(place.tolist())) == reading.place

    assert_resumes_as(whole, parts, file)
