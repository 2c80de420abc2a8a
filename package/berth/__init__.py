"""Berth as an installed package. Its code lies in `home/`, laid out as in the repository.

The repository's packages have common names (api, configs, engine …). Installed side by side with others they
would collide; in a folder of their own they don't.
"""
