"""What forwarding costs: Berth's data plane beside nginx, FastAPI + aiohttp and FastAPI + httpx."""
