"""Acting with the PLM: prompted policies, environments side by side, rollouts."""
