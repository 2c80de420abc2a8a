"""What `berth` can be told to do; each module registers its commands with `cli.app`."""
