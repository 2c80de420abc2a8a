"""What outlives Berth: records in a store, engines found again, other Berths on the same store."""
