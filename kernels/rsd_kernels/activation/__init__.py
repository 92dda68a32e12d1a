"""The gated activation of an MLP (SwiGLU): silu(gate) times up."""
