"""Reading in batches, keeping state, and making results safe."""
