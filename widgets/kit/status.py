"""The signs of the states of runs."""

SIGNS = {
    "finished": "✓",
    "running": "▶",
    "stopping": "◼",
    "stopped": "◼",
    "failed": "✗",
    "dead": "✗",
    "unfinished": "○",
    "queued": "◌",
}
