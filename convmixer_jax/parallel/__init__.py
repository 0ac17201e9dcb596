"""Devices, processes and their signals: sharding, clusters, the watchdog and the workdir's lock."""
