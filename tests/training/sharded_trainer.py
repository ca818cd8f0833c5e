"""FSDP2 over gloo, for tests: on a CPU accelerate falls back to DDP without a word, so its state is told after it was made."""

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from mmalign.training.trainer import MethodTrainer


class ShardedTrainer(MethodTrainer):
    """Shards as its arguments say, or as the launch config does where they say nothing."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
        state._shared_state.update(fsdp_plugin=plugin, distributed_type=DistributedType.FSDP)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    def is_sharded(self) -> bool:
        """Say whether every weight that was trained lay in parts on the processes."""
        return all(isinstance(parameter, DTensor) for parameter in self.model_wrapped.parameters())
