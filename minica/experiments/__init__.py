"""Runs and their records, sweeps, the survey of timm, and the paper's tables beside ours."""
