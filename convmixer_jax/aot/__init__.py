"""What XLA's compilers for TPUs, GPUs and CPUs say of a run, asked without any such device."""
