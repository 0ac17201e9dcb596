"""Detects from the environment how a process was launched, and whether others belong to its run."""

from collections.abc import Mapping
import importlib.util

from convmixer_jax.errors import UserError

# What JAX needs to join the tasks of a Slurm step. The shell of a batch script, or one opened by
# ssh in a job, has only some of them.
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)
_HINT = "give each process --coordinator=HOST:PORT --num_processes=N --process_id=I"


def is_one_of_several(environment: Mapping[str, str], has_tpu: bool) -> bool:
  """Whether to call `jax.distributed.initialize()`, which then finds the other processes.

  Always true on TPUs, where JAX itself finds out if there is only one process.

  Args:
    environment: the process's `os.environ`.
    has_tpu: whether JAX will compute on a TPU of this machine.

  Raises:
    UserError: if there are other processes that JAX could not find.
  """
  if has_tpu:
    return True
  # Of the step, not of the job: a shell that Slurm opens in a job of many tasks is one process.
  if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    missing = [name for name in _SLURM if name not in environment]
    if missing:
      raise UserError(f"this Slurm step has several tasks, but no {', '.join(missing)}: {_HINT}")
    return True
  if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    if "OMPI_MCA_orte_hnp_uri" not in environment:
      raise UserError(f"this Open MPI gives its processes no address of the first one: {_HINT}")
    return True
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    if importlib.util.find_spec("kubernetes") is None:
      raise UserError(
        "this is an indexed Job of Kubernetes. To find its other pods, `pip install 'jax[k8s]'`; "
        f"or {_HINT}, with N=1 for a single pod"
      )
    return True
  return False


def local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
  """All GPUs that Slurm gave to this task, if known; None to leave the choice to JAX.

  JAX picks the GPU whose number is the task's index on its node. With one task per node, that is
  only one of several GPUs. If each task sees only its own GPUs, it may not exist.
  """
  visible = environment.get("CUDA_VISIBLE_DEVICES", "")
  is_alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
  if visible and (is_alone or "SLURM_GPUS_PER_TASK" in environment):
    return list(range(len(visible.split(","))))
  return None
