"""anymq: one interface for message brokers, and the proof of where they differ."""
