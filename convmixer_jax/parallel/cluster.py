"""What a process's environment tells about how it was started, and with how many others."""

from collections.abc import Mapping
import importlib.util

from convmixer_jax.errors import UserError

# What JAX needs to join the tasks of a Slurm step. A batch script's own shell, and one that was
# opened by ssh in a job, have some of it.
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)
_HINT = "give each process --coordinator=HOST:PORT --num_processes=N --process_id=I"


def is_one_of_several(environment: Mapping[str, str], has_tpu: bool) -> bool:
  """Whether `jax.distributed.initialize()` finds the other processes of the run by itself.

  On TPUs also where there is one process alone, which it finds out.

  Args:
    environment: of the process, `os.environ`.
    has_tpu: whether JAX is going to compute on a TPU of this machine.

  Raises:
    UserError: if there are others, but it would not find them.
  """
  if has_tpu:
    return True
  # Of the step, not of the job: a shell that Slurm opens in a job of many tasks is one alone.
  if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    missing = [name for name in _SLURM if name not in environment]
    if missing:
      raise UserError(f"a Slurm step of several tasks, without {', '.join(missing)}: {_HINT}")
    return True
  if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    if "OMPI_MCA_orte_hnp_uri" not in environment:
      raise UserError(f"this Open MPI does not tell its processes where the first one is: {_HINT}")
    return True
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    if importlib.util.find_spec("kubernetes") is None:
      raise UserError(
        "an indexed Job of Kubernetes, whose other pods are found with `pip install 'jax[k8s]'`; "
        f"or {_HINT}, N=1 for one that is alone"
      )
    return True
  return False


def local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
  """All GPUs that Slurm gave to this task, where it is known; None for JAX's choice.

  JAX takes the GPU with the number of the task on its node. That is one of several where a node
  has one task, and one that does not exist where each task sees its own GPUs alone.
  """
  visible = environment.get("CUDA_VISIBLE_DEVICES", "")
  is_alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
  if visible and (is_alone or "SLURM_GPUS_PER_TASK" in environment):
    return list(range(len(visible.split(","))))
  return None
