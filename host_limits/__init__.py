"""How much memory and how many CPUs this process may use: the machine's, within its control groups' limits.

Shared by Berth's process and engines, so that both count alike. Imports nothing of ours.
"""
