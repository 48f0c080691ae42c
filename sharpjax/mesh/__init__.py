"""Devices and processes, and the one loop over what they share."""
