"""Changes to modules of verl and TransferQueue, made right after each is first imported.

A module that a process never needs is never imported for the sake of a hook. Each hook says what it changes and why;
they touch private names, so verl and TransferQueue are pinned exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from services.trainer.verl import stacks
from services.trainer.verl.environment import RENDEZVOUS, SECRET
from services.trainer.verl.patches import models
from services.trainer.verl.patches.import_hooks import Hook, install
from services.trainer.verl.patches.one_slot import partitions, whole_chunks
from services.trainer.verl.patches.quiet import silence

# The name under which verl's configuration chooses our rollout engine.
ROLLOUT = "transformers"
# And the type of model under which it chooses our engine of reward models.
SEQUENCE_CLASSIFIER = "sequence_classifier"


def lora_dropout(module: Any) -> None:
    """verl's adapters have no dropout: take `model.lora.dropout` where the adapters are made."""
    build = module.FSDPEngine._build_lora_module
    plain = module.LoraConfig

    def with_dropout(engine: Any, model: Any) -> Any:
        module.LoraConfig = partial(plain, lora_dropout=engine.model_config.lora.get("dropout", 0.0))
        try:
            return build(engine, model)
        finally:
            module.LoraConfig = plain

    module.FSDPEngine._build_lora_module = with_dropout


def learning_rate(module: Any) -> None:
    """verl reports the rate of the step to come: report that of the step that was taken."""
    advance = module.FSDPEngine.lr_scheduler_step

    def advance_and_tell(engine: Any) -> float:
        taken = engine.lr_scheduler.get_last_lr()[0]
        advance(engine)
        return taken

    module.FSDPEngine.lr_scheduler_step = advance_and_tell


def critic_model(module: Any) -> None:
    """verl loads every critic with flash attention, wherever it runs, falls back on a package that we lack, and makes a
    new head whatever the model: load it with the attention that its configuration names, and with a reward model's.
    """

    def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from services.trainer.verl.patches.value_head import load

        return load(local_path, torch_dtype, model_config, trust_remote_code)

    module.load_valuehead_model = load_valuehead_model
    models.mend_model_classes(module)


def engines(module: Any) -> None:
    from services.trainer.verl.patches.adapters import mend_adapters
    from services.trainer.verl.verification.resume_check import watch_engine
    from services.trainer.verl.verification.weight_changes import watch_updates

    models.mend_building(module)
    lora_dropout(module)
    mend_adapters(module)
    learning_rate(module)
    watch_engine(module)
    watch_updates(module)
    classifier_engine(module)


def classifier_engine(module: Any) -> None:
    """Our engine of reward models among verl's."""
    from verl.workers.engine.base import EngineRegistry

    from services.trainer.verl.patches.classifier_engine import SequenceClassifierEngine

    register = EngineRegistry.register(SEQUENCE_CLASSIFIER, ["fsdp2"], device=["cpu", "cuda"])
    register(SequenceClassifierEngine)


def token_logprobs(module: Any) -> None:
    """Where flash-attn is missing verl takes log-probabilities token by token, in a loop of Python."""
    from services.trainer.losses.token_logprobs import token_logprobs as in_chunks

    module.logprobs_from_logits_v2 = in_chunks


def micro_batches(module: Any) -> None:
    from services.trainer.verl.patches.micro_batches import sort_rows

    sort_rows(module)


def cpu_engines(module: Any) -> None:
    """verl's own FSDP engines, registered for device "cpu" too; pinned memory needs a GPU."""
    from verl.workers.engine.base import EngineRegistry

    register = EngineRegistry.register
    register("language_model", ["fsdp", "fsdp2"], device="cpu")(module.FSDPEngineWithLMHead)
    register("value_model", ["fsdp", "fsdp2"], device="cpu")(module.FSDPEngineWithValueHead)
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def cpu_process_group(module: Any) -> None:
    """verl asks torch for "cpu:gloo,cpu:gloo", which is refused for naming a device twice. And the processes of a group
    meet by a file: torch's TCP store would listen on every interface of the machine, for whoever comes.
    """
    original = module.initialize_global_process_group_ray

    def from_ray(timeout_second: int | None = None, backend: str | None = None) -> Any:
        group = f"{os.environ['WG_PREFIX']}-{os.environ['MASTER_PORT']}"
        # The processes of a group are on one node, which need not be the runner's.
        folder = Path(os.environ[RENDEZVOUS])
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["DIST_INIT_METHOD"] = f"file://{folder}/{group}"
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    def plain(timeout_second: int = 36000) -> tuple[int, ...]:
        module.initialize_global_process_group_ray(timeout_second)
        return tuple(int(os.environ[key]) for key in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))

    module.initialize_global_process_group_ray = from_ray
    module.initialize_global_process_group = plain
    # NUMA affinity is found out through NVML.
    module.set_numa_affinity = lambda: None


def transformers_replica(module: Any) -> None:
    """Our rollout engine among verl's."""

    def load() -> Any:
        from services.trainer.verl.rollout.engine import TransformersReplica

        return TransformersReplica

    module.RolloutReplicaRegistry.register(ROLLOUT, load)


def transformers_adapter(module: Any) -> None:
    """The half of our rollout engine that lives in the training worker."""
    module._ROLLOUT_REGISTRY[ROLLOUT, "async"] = "services.trainer.verl.rollout.engine.TransformersAdapter"


def queue_controller(module: Any) -> None:
    """TransferQueue's controller is a named actor in one fixed namespace, so two jobs of one Ray cluster would share a
    queue and delete each other's rows. Put it into the namespace of the job; and see `queue_storage`.
    """
    module.ray = _Changed(module.ray, "get_actor", _in_job_namespace)
    module.TransferQueueController = _Changed(
        module.TransferQueueController, "options", lambda options: {**_in_job_namespace(options), "num_cpus": 0}
    )


def queue_storage(module: Any) -> None:
    """The queue's actors want a CPU each, outside the slots of their job: two jobs that have taken their slots could
    then wait for each other's CPUs for ever. They do nothing while others compute, so let them want none.
    """
    module.SimpleStorageUnit = _Changed(module.SimpleStorageUnit, "options", lambda options: {**options, "num_cpus": 0})


def queue_sockets(module: Any) -> None:
    """The queue's sockets take messages, pickled ones too, from whoever connects: any user of the machine, or of the
    network, could run code in the training. See `secured_socket`.
    """
    module.unsecured_socket = module.create_zmq_socket
    module.create_zmq_socket = secured_socket


def secured_socket(ctx: Any, socket_type: Any, *args: Any, **kwargs: Any) -> Any:
    """A socket that speaks only with who knows the server's public key, which follows from the secret of the run and is
    published nowhere (RFC 26/CURVEZMQ). Ray sends the queue's classes by value and this function by its name.
    """
    import zmq
    from transfer_queue.utils import zmq_utils
    from zmq.utils import z85

    socket = vars(zmq_utils)["unsecured_socket"](ctx, socket_type, *args, **kwargs)
    server_secret = z85.encode(bytes.fromhex(os.environ[SECRET]))
    server_public = zmq.curve_public(server_secret)
    if socket_type == zmq.ROUTER:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = server_public, server_secret
    else:
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = server_public
    return socket


def _in_job_namespace(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "namespace"}


class _Changed:
    """Everything of `inner`, except that the keyword arguments of `method` go through `change` first."""

    def __init__(self, inner: Any, method: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._inner = inner
        self._method = method
        self._change = change

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found
        return lambda *args, **kwargs: found(*args, **self._change(kwargs))


def install_common() -> None:
    """What Ray calls first in every process of a job: the queue's own do not import verl, and so not our plugin."""
    silence()
    stacks.in_process()
    install(COMMON)


# For every platform, for training workers of every platform, and for CPU besides.
COMMON: dict[str, Hook] = {
    "transfer_queue.interface": queue_controller,
    "transfer_queue.utils.zmq_utils": queue_sockets,
    "transfer_queue.storage.bootstrap.simple_storage_bootstrap": queue_storage,
}
ENGINES: dict[str, Hook] = {
    "verl.utils.torch_functional": token_logprobs,
    "verl.utils.tensordict_utils": whole_chunks,
    "verl.utils.seqlen_balancing": partitions,
    "verl.workers.engine.utils": micro_batches,
    "verl.workers.engine.fsdp.transformer_impl": engines,
    "verl.utils.model": critic_model,
    "verl.workers.config.model": models.leave_out_auto_map,
    "verl.utils.checkpoint.fsdp_checkpoint_manager": models.mend_saving,
    "verl.models.transformers.monkey_patch": models.mend_model_patches,
    "verl.workers.rollout.replica": transformers_replica,
    "verl.workers.rollout.base": transformers_adapter,
}
CPU: dict[str, Hook] = {
    "verl.workers.engine.fsdp.transformer_impl": cpu_engines,
    "verl.utils.distributed": cpu_process_group,
}
