"""What the command ends with, for those who call it from a script; 0 is success."""

from __future__ import annotations

FAILED, USAGE, INTERRUPTED = 1, 2, 130
