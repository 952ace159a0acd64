"""Hypothesis for tests on shared machines: no deadline for one example, and fewer examples than its default of 100."""

from hypothesis import settings

settings.register_profile("rlx", deadline=None, max_examples=60)
settings.load_profile("rlx")
