"""The policy transformer, the diffuser and the diffusion process."""
