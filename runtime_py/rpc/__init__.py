"""Artifacts on another machine's devices, over TVM's RPC: its server has functions of ours beside TVM's own."""
