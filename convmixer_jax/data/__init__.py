"""From files to batches on the mesh: datasets, decoding, shuffling, and corrupt examples."""
