"""The shipped launch configs: read by accelerate's own loader, every key one that it knows, every process accounted for."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "accelerate"
EXPECTED = {
    "one_gpu": ("NO", 1, 1),
    "ddp_8gpu": ("MULTI_GPU", 8, 1),
    "fsdp2_8gpu": ("FSDP", 8, 1),
    "zero2_8gpu": ("DEEPSPEED", 8, 1),
    "zero3_8gpu": ("DEEPSPEED", 8, 1),
    "two_nodes": ("MULTI_GPU", 16, 2),
}


def test_every_config_is_known() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    known = {field.name for field in dataclasses.fields(ClusterConfig)}
    assert set(values) <= known, set(values) - known
    config = load_config_from_file(str(path))
    assert (str(config.distributed_type.value), config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("name", EXPECTED)
def test_its_options_are_the_launchers(name: str) -> None:
    """The launcher takes what a config holds for FSDP and DeepSpeed as its own options: an unknown one would be passed over in silence."""
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    parser = launch_command_parser()
    options = {action.dest for action in parser._actions}
    for group in ("fsdp_config", "deepspeed_config"):
        unknown = set(values.get(group, {})) - options
        assert not unknown, unknown


@pytest.mark.parametrize("name", [name for name in EXPECTED if not name.startswith("zero")])
def test_the_launcher_resolves_it(name: str) -> None:
    """DeepSpeed's package is asked for here, so its two are left out."""
    parser = launch_command_parser()
    arguments, _, _ = _validate_launch_command(parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "train.py"]))
    kind, processes, machines = EXPECTED[name]
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    assert arguments.use_fsdp == (kind == "FSDP")
    assert bool(arguments.multi_gpu) == (kind == "MULTI_GPU")
    if kind == "FSDP":
        assert int(arguments.fsdp_version) == 2
        assert {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)} >= {"fsdp_version", "state_dict_type"}
