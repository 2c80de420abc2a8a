"""What outlives a Berth process: stored records, recovered engines, and other nodes on the same store."""
