"""The embedded engine on a GPU: is it right, how fast is it, and what keeps it from being faster."""

REHEARSAL = "GPU_CHECK_REHEARSAL"  # environment: 1 = tiny sizes on a CPU, to run the check's own code
