"""Holds every kernel of an artifact against its numpy twin, on the device: the check of a new phone or driver."""
