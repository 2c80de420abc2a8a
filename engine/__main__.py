"""`python -m engine --model PATH --port N …`: one model behind an OpenAI-compatible server.

Exit codes: 0 stopped on request; 1 the model can't be served; 2 wrong arguments; 65 the checkpoint is of a
kind that this engine doesn't run, or incomplete; 98 the port is taken.
"""

from __future__ import annotations

from engine.launch.launcher import main

if __name__ == "__main__":
    main()
