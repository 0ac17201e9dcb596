"""C++ sources, compiled on first use."""
