"""Real images that come inside pip packages, with memorization planted in known places."""
