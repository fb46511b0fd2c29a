"""What `camox train … -- OPTIONS` is refused for, before anything is launched."""

import os
import socket

import pytest
import torch

from camox.errors import ExperimentError
from camox.training.launching import accelerate_launch, options
from camox.training.launching.options import local_processes, settle

TWO_GPUS = "distributed_type: MULTI_GPU\nnum_processes: 2\nmain_process_port: 0\n"
TWO_MACHINES = "distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 2\n"
FIRST = ["--machine_rank", "0", "--main_process_ip", "127.0.0.1"]


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch, tmp_path):
    """A machine with two GPUs on which `accelerate config` was never run."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(options, "default_config_file", str(tmp_path / "default_config.yaml"))
    for name in ("WORLD_SIZE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "ACCELERATE_USE_CPU", "CAMOX_EXPECTED_PROCESSES"):
        monkeypatch.setenv(name, "")  # for monkeypatch to put back
        monkeypatch.delenv(name)


@pytest.fixture
def settled(tmp_path):
    def with_options(*options, file=None):
        if file is not None:
            (tmp_path / "given.yaml").write_text(file)
            options = ("--config_file", str(tmp_path / "given.yaml"), *options)
        return settle([*options, "train.py", "x.toml", "data.batch_size=2"])

    return with_options


@pytest.fixture
def taken_port():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "file", "total", "here"),
    [
        ([], None, 2, 2),  # one per GPU
        (["--cpu"], None, 1, 1),
        (["--num_processes", "1"], None, 1, 1),
        (["--num-processes=2"], None, 2, 2),
        (["--cpu", "--num_processes", "5"], None, 5, 5),
        ([], TWO_GPUS, 2, 2),
        (["--num_processes", "1"], TWO_GPUS, 1, 1),
        (["--cpu"], TWO_GPUS, 2, 2),
        ([], 'distributed_type: "NO"\n', 1, 1),
        ([], "distributed_type: MULTI_CPU\nnum_processes: 3\nuse_cpu: true\n", 3, 3),
        (FIRST, TWO_MACHINES, 4, 2),
        ([*FIRST, "--num_machines", "2", "--num_processes", "2"], None, 2, 1),
        ([*FIRST, "--num_machines", "2"], None, 4, 2),  # one per GPU of each machine
    ],
)
def test_processes_are_those_of_options_else_file_else_gpus(settled, monkeypatch, options, file, total, here):
    monkeypatch.setattr("camox.training.launching.options.cores", lambda: 8)
    arguments = settled(*options, file=file)
    assert (arguments.num_processes, local_processes(arguments)) == (total, here)
    assert arguments.multi_gpu is (total > 1)
    assert arguments.training_script_args == ["x.toml", "data.batch_size=2"]


def test_the_file_of_accelerate_config_counts(settled, monkeypatch, tmp_path):
    file = tmp_path / "default_config.yaml"
    file.write_text('distributed_type: "NO"\nnum_processes: 1\nmixed_precision: bf16\n')
    monkeypatch.setattr(options, "load_config_from_file", lambda given: options.ClusterConfig.from_yaml_file(given))
    assert settled().num_processes == 1


@pytest.mark.parametrize("options", [["--num_processes", "3"], ["--num_processes", "2", "--gpu_ids", "1"]])
def test_more_processes_than_gpus(settled, options):
    with pytest.raises(
        ExperimentError, match=r"^[23] processes .* each with its own GPU, and it has [12]: give --num_"
    ):
        settled(*options)


def test_a_file_for_gpus_where_there_are_none(settled, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    assert settled().num_processes == 1
    assert settled("--cpu", file=TWO_GPUS).use_cpu
    with pytest.raises(ExperimentError, match="it has 0: add --cpu"):
        settled(file=TWO_GPUS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num_processes", "0"], "num_processes is 0: there must be at least one process"),
        (["--num_processes", "-1"], "num_processes is -1: there must be at least one process"),
        (["--num_processes", "many"], "num_processes.*invalid int value: 'many'; what follows --"),
        (["--nproc", "2"], "unrecognized arguments: --nproc; what follows --"),
        (["2"], "'2' is no option; what follows --"),
        (["--num_machines", "0"], "num_machines is 0"),
        (["--cpu", "--num_processes", "6400"], "6400 processes are asked for on this machine's CPU, which has"),
        (["--use_fsdp"], "FSDP is asked for, but camox keeps the whole network"),
        (["--main_process_port", "70000"], "--main_process_port 70000: ports are 1 to 65535"),
    ],
)
def test_wrong_options(settled, options, said):
    with pytest.raises(ExperimentError, match=said):
        settled(*options)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("a: [1", r"given\.yaml: is not YAML \(line 1: "),
        ("a: \x00", r"given\.yaml: is not YAML"),
        ("", r"given\.yaml: holds no keys"),
        ("just words", r"given\.yaml: holds no keys"),
        ("num_procesess: 2\ndistributed_type: MULTI_GPU", "unknown key num_procesess: did you mean num_processes?"),
        ("7: 2\ndistributed_type: MULTI_GPU", "unknown key 7$"),
        ("num_processes: 2", "A `distributed_type` must be specified"),
        ("distributed_type: TWO_GPUS", "'TWO_GPUS' is not a valid DistributedType"),
        ("distributed_type: MULTI_GPU\nnum_processes: two", "num_processes is 'two', not a whole number"),
        ("distributed_type: MULTI_GPU\nnum_processes: true", "num_processes is True, not a whole number"),
        ("distributed_type: FSDP\nnum_processes: 2", "FSDP is asked for, but camox keeps the whole network"),
        ("compute_environment: AMAZON_SAGEMAKER", "given.yaml"),
    ],
)
def test_wrong_files(settled, file, said):
    with pytest.raises(ExperimentError, match=said):
        settled(file=file)


def test_a_file_that_is_not_there(settled, tmp_path):
    with pytest.raises(ExperimentError, match=r"--config_file nowhere\.yaml: cannot be read \(No such file"):
        settled("--config_file", "nowhere.yaml")
    with pytest.raises(ExperimentError, match="cannot be read"):
        settled("--config_file", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FIRST[2:], "--machine_rank is not given: .* 0 to 1"),
        (["--machine_rank", "2", *FIRST[2:]], "--machine_rank is 2: .* 0 to 1"),
        (FIRST[:2], "--main_process_ip is not given"),
        ([*FIRST[:2], "--main_process_ip", "nowhere.invalid"], "nowhere.invalid: this machine knows no such name"),
        ([*FIRST, "--main_process_port", "0"], "--main_process_port 0: several machines need one"),
        (
            [*FIRST, "--num_processes", "3"],
            "num_processes is 3 and num_machines is 2: num_processes counts those of all",
        ),
        ([*FIRST, "--num_processes", "6"], "3 processes are asked for on this machine"),
    ],
)
def test_several_machines(settled, options, said):
    with pytest.raises(ExperimentError, match=said):
        settled(*options, file=TWO_MACHINES)


def test_a_machines_rank_may_stand_in_its_file(settled):
    assert settled(*FIRST[2:], file=TWO_MACHINES + "machine_rank: 1\n").machine_rank == 1


def test_a_port_in_use(settled, taken_port):
    with pytest.raises(ExperimentError, match=rf"--main_process_port {taken_port} is taken .*: give 0, for a free one"):
        settled("--main_process_port", str(taken_port))
    with pytest.raises(ExperimentError, match=rf"{taken_port} is taken .*: give another, the same on all machines"):
        settled(*FIRST, "--main_process_port", str(taken_port), file=TWO_MACHINES)


def test_a_port_that_is_only_connected_to_is_of_no_matter(settled, taken_port):
    """The port is machine 0's; one process alone listens to none."""
    second = ["--machine_rank", "1", *FIRST[2:]]
    assert settled(*second, "--main_process_port", str(taken_port), file=TWO_MACHINES).main_process_port == taken_port
    assert settled("--num_processes", "1", "--main_process_port", str(taken_port)).num_processes == 1


def test_without_a_port_one_machine_takes_a_free_one_and_several_the_usual(settled):
    assert settled().main_process_port == 0
    assert settled("--machine_rank", "1", *FIRST[2:], file=TWO_MACHINES).main_process_port == 29500


@pytest.mark.parametrize(("here", "threads"), [(1, "16"), (4, "4"), (32, "1")])
def test_cores_are_shared_among_the_processes_of_this_machine(monkeypatch, here, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    accelerate_launch._set_environment(2 * here, here, on_cpu=False)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == (threads, "passive")
    assert os.environ["CAMOX_EXPECTED_PROCESSES"] == str(2 * here)
    assert "ACCELERATE_USE_CPU" not in os.environ


def test_the_users_threads_are_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    accelerate_launch._set_environment(1, 1, on_cpu=True)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "active")
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


def test_processes_that_another_launcher_announced(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ExperimentError, match=r"WORLD_SIZE is 4 in this environment, but one process .* unset WORLD_SIZE"
    ):
        accelerate_launch._set_environment(1, 1, on_cpu=False)
    accelerate_launch._set_environment(2, 2, on_cpu=False)  # torchrun sets it anew
