"""C++ sources, compiled where and when they are first used."""
