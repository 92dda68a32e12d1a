"""The gated activation of an MLP: silu(gate) times up (SwiGLU), or GELU in place of SiLU."""
