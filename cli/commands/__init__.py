"""The commands of `berth`; each module registers its own with `cli.app`."""
