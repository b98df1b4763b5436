"""Acting with the PLM: prompted policies, parallel environments, rollouts."""
