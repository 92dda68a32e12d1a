"""Against other programs, and accuracy against arithmetic."""
