"""How fast the embedded engine serves, with vLLM beside it where there is one."""
