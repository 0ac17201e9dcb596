"""The input pipeline: datasets, decoding, shuffling, batches on the mesh, and corrupt examples."""
