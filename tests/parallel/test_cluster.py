import pytest

from convmixer_jax.errors import UserError
from convmixer_jax.parallel.cluster import is_one_of_several, local_device_ids

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_NUM_TASKS": "2",
}


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, False),
    (SLURM, True),
    (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
    # The shell of an allocation, or one opened by ssh in a job.
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({key: SLURM[key] for key in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}, False),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, True),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod outside a Job
    ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1"}, False),
  ],
)
def test_only_several_processes_look_for_each_other(environment, expected):
  assert is_one_of_several(environment, has_tpu=False) == expected
  assert is_one_of_several(environment, has_tpu=True)


@pytest.mark.parametrize(
  ("environment", "message"),
  [
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "this Open MPI gives its processes no address"),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "no SLURM_JOB_ID, SLURM_STEP_NODELIST"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, r"jax\[k8s\]"),
  ],
)
def test_processes_that_would_not_find_each_other_do_not_run_side_by_side(environment, message):
  with pytest.raises(UserError, match=message + ".*--coordinator=HOST:PORT"):
    is_one_of_several(environment, has_tpu=False)


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, None),
    ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, None),
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, [0, 1, 2, 3]),
    ({"CUDA_VISIBLE_DEVICES": "5", "SLURM_GPUS_PER_TASK": "1"}, [0]),
    ({"SLURM_STEP_TASKS_PER_NODE": "1"}, None),
  ],
)
def test_a_task_takes_all_gpus_that_are_its_own(environment, expected):
  assert local_device_ids(environment) == expected
