"""The cost of forwarding: Berth's data plane compared with nginx, FastAPI + aiohttp and FastAPI + httpx."""
